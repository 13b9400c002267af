"""Building blocks of the DDPM U-Net (Ho et al. 2020, as in the paper's code).

Every block is called as block(h, temb, rngs), even if it does not use the time embedding `temb` or the dropout keys
`rngs` (None disables dropout). So the U-Net can be a list of blocks.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from core.shapes import AnyArray, Images, RandomKey
from models import cpu

TimeEmbedding = Float[Array, "batch temb_dim"]
"""The embedded timestep of each image; temb_dim is 4 nf."""

NONLINEARITIES: dict[str, Callable[[AnyArray], AnyArray]] = {
    "swish": jax.nn.swish,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "lrelu": lambda x: jax.nn.leaky_relu(x, 0.2),
}


def default_init(scale: float = 1.0) -> nnx.Initializer:
    """Returns DDPM's initialiser for kernels: uniform with variance scale / fan_avg.

    scale: 0 stands for 1e-10, so the output of a residual branch is almost zero at first.

    NumPy draws the values, because compiling an XLA generator for every layer would take longer than training a small
    network. A traced key, as in `jax.eval_shape`, needs a callback; functions with callbacks cannot be kept in JAX's
    compilation cache on disk.
    """

    def init(key, shape, dtype, **_):
        fan_avg = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2
        limit = math.sqrt(3 * (scale or 1e-10) / fan_avg)

        def draw(key_data):
            return np.random.default_rng(np.asarray(key_data)).uniform(-limit, limit, shape).astype(dtype)

        key_data = jax.random.key_data(key)
        if isinstance(key_data, jax.core.Tracer):
            return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), key_data)
        return jnp.asarray(draw(key_data))

    return init


def add_to_pixels(
    x: Float[Array, "batch *space channels"], values: Float[Array, "*batch channels"]
) -> Float[Array, "batch *space channels"]:
    """Adds one vector per image, or one for all images, to every pixel."""
    if jax.default_backend() == "cpu":
        return cpu.add_to_pixels(x, values)
    return x + (values if values.ndim == 1 else jnp.expand_dims(values, range(1, x.ndim - 1)))


def space_to_depth(x: Images, size: int) -> Float[Array, "batch patch_rows patch_columns patch_channels"]:
    """Turns patches of size x size pixels into channels: [B, H, W, C] to [B, H / size, W / size, size^2 C].

    The channels of the result list the pixels of a patch row by row, with the C channels of each pixel together.
    """
    batch, height, width, channels = x.shape
    patches = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return patches.reshape(batch, height // size, width // size, size * size * channels)


def depth_to_space(x: Float[Array, "batch patch_rows patch_columns patch_channels"], size: int) -> Images:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    patches = x.reshape(batch, height, width, size, size, channels // size**2).swapaxes(2, 3)
    return patches.reshape(batch, height * size, width * size, channels // size**2)


class Conv(nnx.Conv):
    """nnx.Conv, but adds the bias with `add_to_pixels`. The arguments are those of nnx.Conv."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.use_bias = False  # so that super().__call__ does not add the bias; the parameter already exists

    def __call__(self, x: Images) -> Float[Array, "batch out_height out_width out_channels"]:
        y = super().__call__(x)
        return add_to_pixels(y, self.bias[...].astype(y.dtype))


class Dense(nnx.Linear):
    """nnx.Linear over the last axis, but adds the bias with `add_to_pixels`."""

    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "batch *space out_channels"]:
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        return add_to_pixels(x @ kernel, bias)


class GroupNorm(nnx.GroupNorm):
    """nnx.GroupNorm, but uses `cpu.group_norm` on a CPU."""

    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "batch *space channels"]:
        if jax.default_backend() == "cpu":
            return cpu.group_norm(x, self.scale[...], self.bias[...], groups=self.num_groups, epsilon=self.epsilon)
        return super().__call__(x)


def conv3x3(channels: int, out_channels: int, *, init_scale: float = 1.0, rngs: nnx.Rngs, **options: Any) -> Conv:
    """Returns a 3x3 convolution with `default_init`. Other options are those of nnx.Conv."""
    return Conv(channels, out_channels, (3, 3), kernel_init=default_init(init_scale), rngs=rngs, **options)


def dense(channels: int, out_channels: int, *, init_scale: float = 1.0, rngs: nnx.Rngs) -> Dense:
    """Returns a linear layer with `default_init`. On images it is a 1x1 convolution."""
    return Dense(channels, out_channels, kernel_init=default_init(init_scale), rngs=rngs)


def group_norm(channels: int, num_groups: int, *, rngs: nnx.Rngs) -> GroupNorm:
    """Returns a group normalization with the paper's epsilon."""
    return GroupNorm(channels, num_groups=num_groups, epsilon=1e-6, rngs=rngs)


def timestep_embedding(
    t: Real[Array, "batch"], dim: int, *, shift: float = 1, cos_first: bool = False
) -> Float[Array, "batch dim"]:
    """Returns the sines, then the cosines, of t at dim / 2 frequencies in geometric progression from 1 to 1e-4.

    shift: with 0, the progression ends one frequency before 1e-4.
    cos_first: whether the cosines come before the sines.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(1e4) / (half - shift) * jnp.arange(half))
    angles = t.astype(jnp.promote_types(t.dtype, jnp.float32))[:, None] * frequencies
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cos_first else parts, axis=-1)


def dropout(x: Float[Array, "*shape"], rate: float, key: RandomKey) -> Float[Array, "*shape"]:
    """Sets each value to zero with probability `rate` and divides the others by 1 - rate.

    The last axis must have even length. Drawing random bits takes most of the time, so each 32-bit word is used for two
    values. With 16 bits per value, the rate is exact to 1e-5.
    """
    words = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 2), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(x.shape)
    return jnp.where(halves >= round(rate * 2**16), x / (1 - rate), 0)


class ResnetBlock(nnx.Module):
    """A residual block of two 3x3 convolutions. The time embedding, then dropout, are applied between them.

    temb_dim: length of the time embedding; 0 for a network without it.
    dropout: the dropout rate.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        temb_dim: int,
        *,
        num_groups: int,
        act: Callable[[AnyArray], AnyArray],
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.act = act
        self.norm1 = group_norm(channels, num_groups, rngs=rngs)
        self.conv1 = conv3x3(channels, out_channels, rngs=rngs)
        self.temb_dense = dense(temb_dim, out_channels, rngs=rngs) if temb_dim else None
        self.norm2 = group_norm(out_channels, num_groups, rngs=rngs)
        self.dropout = dropout
        self.conv2 = conv3x3(out_channels, out_channels, init_scale=0, rngs=rngs)
        self.shortcut = dense(channels, out_channels, init_scale=0.1, rngs=rngs) if channels != out_channels else None

    def __call__(
        self, x: Images, temb: TimeEmbedding | None, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch height width out_channels"]:
        h = self.conv1(self.act(self.norm1(x)))
        if self.temb_dense is not None:
            h = add_to_pixels(h, self.temb_dense(self.act(temb)))
        h = self.act(self.norm2(h))
        if rngs is not None and self.dropout:
            h = dropout(h, self.dropout, rngs.dropout())
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + self.conv2(h)


class AttentionBlock(nnx.Module):
    """A residual block of self-attention over all pixels, with one head."""

    def __init__(self, channels: int, *, num_groups: int, rngs: nnx.Rngs):
        self.norm = group_norm(channels, num_groups, rngs=rngs)
        self.query = dense(channels, channels, init_scale=0.1, rngs=rngs)
        self.key = dense(channels, channels, init_scale=0.1, rngs=rngs)
        self.value = dense(channels, channels, init_scale=0.1, rngs=rngs)
        self.out = dense(channels, channels, init_scale=0, rngs=rngs)

    def __call__(self, x: Images, temb: TimeEmbedding | None, rngs: nnx.Rngs | None) -> Images:
        batch, height, width, channels = x.shape
        pixels = self.norm(x).reshape(batch, height * width, 1, channels)
        attended = jax.nn.dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        return x + self.out(attended).reshape(x.shape)


class Downsample(nnx.Module):
    """Halves height and width by a strided convolution, or by 2x2 means if `with_conv` is false.

    padding: padding of the convolution; by default only below and to the right, as in the paper's code.
    """

    def __init__(self, channels: int, *, with_conv: bool, padding: Any = ((0, 1), (0, 1)), rngs: nnx.Rngs):
        self.conv = conv3x3(channels, channels, strides=2, padding=padding, rngs=rngs) if with_conv else None

    def __call__(
        self, x: Images, temb: TimeEmbedding | None, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch out_height out_width channels"]:
        return nnx.avg_pool(x, (2, 2), strides=(2, 2)) if self.conv is None else self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width by repeating pixels, followed by a 3x3 convolution if `with_conv` is true."""

    def __init__(self, channels: int, *, with_conv: bool, rngs: nnx.Rngs):
        self.conv = conv3x3(channels, channels, rngs=rngs) if with_conv else None

    def __call__(
        self, x: Images, temb: TimeEmbedding | None, rngs: nnx.Rngs | None
    ) -> Float[Array, "batch out_height out_width channels"]:
        if self.conv is not None and jax.default_backend() == "cpu":
            return add_to_pixels(cpu.doubled_conv3x3(x, self.conv.kernel[...]), self.conv.bias[...])
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return x if self.conv is None else self.conv(x)
