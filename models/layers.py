"""The building blocks of the DDPM U-Net (Ho et al. 2020, as in the paper's code). Images are [B, H, W, C].

Every block is called as block(h, temb, rngs): the time embedding [B, 4 nf] and the dropout keys reach those that
use them, so that the U-Net is a plain list of blocks.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import cpu

NONLINEARITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": jax.nn.swish,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "lrelu": lambda x: jax.nn.leaky_relu(x, 0.2),
}


def default_init(scale: float = 1.0) -> nnx.Initializer:
    """DDPM's initialiser: uniform, of variance scale / fan_avg; scale 0 means 1e-10, so a branch starts as nothing.

    numpy draws, since XLA would spend longer compiling a generator for every layer than a small network trains.
    """

    def init(key, shape, dtype, **_):
        fan_avg = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2
        limit = math.sqrt(3 * (scale or 1e-10) / fan_avg)

        def draw(key_data):
            return np.random.default_rng(np.asarray(key_data)).uniform(-limit, limit, shape).astype(dtype)

        return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), jax.random.key_data(key))

    return init


def add_to_pixels(x: jax.Array, values: jax.Array) -> jax.Array:
    """x [B,...,C] + values [B,C] or [C]."""
    if jax.default_backend() == "cpu":
        return cpu.add_to_pixels(x, values)
    return x + (values if values.ndim == 1 else jnp.expand_dims(values, range(1, x.ndim - 1)))


def space_to_depth(x: jax.Array, size: int) -> jax.Array:
    """x [B,H,W,C] with patches of size x size as pixels: [B, H / size, W / size, size^2 C]."""
    batch, height, width, channels = x.shape
    patches = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return patches.reshape(batch, height // size, width // size, size * size * channels)


def depth_to_space(x: jax.Array, size: int) -> jax.Array:
    """The inverse of space_to_depth."""
    batch, height, width, channels = x.shape
    patches = x.reshape(batch, height, width, size, size, channels // size**2).swapaxes(2, 3)
    return patches.reshape(batch, height * size, width * size, channels // size**2)


class Conv(nnx.Conv):
    """nnx.Conv with `add_to_pixels` for its bias."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.use_bias = False  # in super().__call__

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        return add_to_pixels(y, self.bias[...].astype(y.dtype))


class Dense(nnx.Linear):
    """nnx.Linear with `add_to_pixels` for its bias."""

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        return add_to_pixels(x @ kernel, bias)


class GroupNorm(nnx.GroupNorm):
    def __call__(self, x: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu":
            return cpu.group_norm(x, self.scale[...], self.bias[...], self.num_groups, self.epsilon)
        return super().__call__(x)


def conv3x3(channels: int, out_channels: int, *, init_scale: float = 1.0, rngs: nnx.Rngs, **options) -> Conv:
    return Conv(channels, out_channels, (3, 3), kernel_init=default_init(init_scale), rngs=rngs, **options)


def dense(channels: int, out_channels: int, *, init_scale: float = 1.0, rngs: nnx.Rngs) -> Dense:
    return Dense(channels, out_channels, kernel_init=default_init(init_scale), rngs=rngs)


def group_norm(channels: int, num_groups: int, *, rngs: nnx.Rngs) -> GroupNorm:
    return GroupNorm(channels, num_groups=num_groups, epsilon=1e-6, rngs=rngs)


def timestep_embedding(t: jax.Array, dim: int) -> jax.Array:
    """Sines, then cosines, of t [B] at dim/2 geometric frequencies from 1 to 1e-4: [B, dim]."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(1e4) / (half - 1) * jnp.arange(half))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes a share `rate` of x [..., C], C even, and divides the rest by 1 - rate.

    Each random word serves two values: 16 bits get the rate right to 1e-5, and drawing is what takes the time.
    """
    words = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 2), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(x.shape)
    return jnp.where(halves >= round(rate * 2**16), x / (1 - rate), 0)


class ResnetBlock(nnx.Module):
    """Two 3x3 convolutions around the time embedding, added to their input."""

    def __init__(self, channels, out_channels, temb_dim, *, num_groups, act, dropout, rngs: nnx.Rngs):
        self.act = act
        self.norm1 = group_norm(channels, num_groups, rngs=rngs)
        self.conv1 = conv3x3(channels, out_channels, rngs=rngs)
        self.temb_dense = dense(temb_dim, out_channels, rngs=rngs) if temb_dim else None
        self.norm2 = group_norm(out_channels, num_groups, rngs=rngs)
        self.dropout = dropout
        self.conv2 = conv3x3(out_channels, out_channels, init_scale=0, rngs=rngs)
        self.shortcut = dense(channels, out_channels, init_scale=0.1, rngs=rngs) if channels != out_channels else None

    def __call__(self, x, temb, rngs):
        h = self.conv1(self.act(self.norm1(x)))
        if self.temb_dense is not None:
            h = add_to_pixels(h, self.temb_dense(self.act(temb)))
        h = self.act(self.norm2(h))
        if rngs is not None and self.dropout:
            h = dropout(h, self.dropout, rngs.dropout())
        return (x if self.shortcut is None else self.shortcut(x)) + self.conv2(h)


class AttentionBlock(nnx.Module):
    """Self-attention over all pixels with one head, added to its input."""

    def __init__(self, channels, *, num_groups, rngs: nnx.Rngs):
        self.norm = group_norm(channels, num_groups, rngs=rngs)
        self.query = dense(channels, channels, init_scale=0.1, rngs=rngs)
        self.key = dense(channels, channels, init_scale=0.1, rngs=rngs)
        self.value = dense(channels, channels, init_scale=0.1, rngs=rngs)
        self.out = dense(channels, channels, init_scale=0, rngs=rngs)

    def __call__(self, x, temb, rngs):
        b, h, w, c = x.shape
        pixels = self.norm(x).reshape(b, h * w, 1, c)
        attended = jax.nn.dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        return x + self.out(attended).reshape(x.shape)


class Downsample(nnx.Module):
    """Halves height and width: a strided convolution, or 2x2 means."""

    def __init__(self, channels, *, with_conv, rngs: nnx.Rngs):
        # Padded below and to the right only, as in the original.
        self.conv = conv3x3(channels, channels, strides=2, padding=((0, 1), (0, 1)), rngs=rngs) if with_conv else None

    def __call__(self, x, temb, rngs):
        return nnx.avg_pool(x, (2, 2), strides=(2, 2)) if self.conv is None else self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width by repeating pixels, then convolves if asked."""

    def __init__(self, channels, *, with_conv, rngs: nnx.Rngs):
        self.conv = conv3x3(channels, channels, rngs=rngs) if with_conv else None

    def __call__(self, x, temb, rngs):
        if self.conv is not None and jax.default_backend() == "cpu":
            return add_to_pixels(cpu.doubled_conv3x3(x, self.conv.kernel[...]), self.conv.bias[...])
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return x if self.conv is None else self.conv(x)
