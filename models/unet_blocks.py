"""Blocks of the U-Nets that Karras et al. (2022, arXiv 2206.00364) use: DDPM++ and NCSN++ (`songunet`), ADM (`adm`).

As in `models.layers`, a block is called as block(x, emb, rngs).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from core.errors import UserError
from core.shapes import AnyArray, Images, Labels
from models.layers import Downsample, GroupNorm, Upsample, add_to_pixels, conv3x3, dense, dropout

Embedding = Float[Array, "batch emb_dim"]
"""The embedding of the noise level, the class and the augmentation of each image."""


class BlockSettings(NamedTuple):
    """Settings that all blocks of a network share.

    Attributes:
      emb_dim: the length of the embedding.
      dropout: the dropout rate.
      epsilon: the epsilon of group normalization.
      scale: every residual sum is multiplied by it.
      taps: the resampling filter along one axis, not normalized.
      num_heads: the number of attention heads. If it is 0, there are channels // head_channels heads. If that is 0,
        too, there is no attention.
      head_channels: the number of channels of a head, if num_heads is 0.
      group_channels: the smallest number of channels in a group of group normalization.
      scales_and_shifts: whether the embedding scales and shifts the output of the second norm; if not, the embedding is
        added before that norm.
      resampled_shortcut: whether a block that resamples has a 1x1 convolution in its shortcut.
    """

    emb_dim: int
    dropout: float
    epsilon: float
    scale: float
    taps: tuple[float, ...]
    num_heads: int
    head_channels: int
    group_channels: int
    scales_and_shifts: bool
    resampled_shortcut: bool


def down(x: Images, taps: Sequence[float], padding: int | None = None) -> Images:
    """Halves height and width: a convolution with the filter along each axis, then every second pixel.

    padding: number of zeros added at each edge; by default the number for which the size is exactly halved.
    """
    weights = np.asarray(taps) / np.sum(taps)
    padding = (len(taps) - 1) // 2 if padding is None else padding
    for axis in (1, 2):
        padded = jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(4)])
        length = (padded.shape[axis] - len(taps)) // 2 + 1
        x = sum(
            float(weight) * jax.lax.slice_in_dim(padded, k, k + 2 * length - 1, stride=2, axis=axis)
            for k, weight in enumerate(weights)
        )
    return x


def up(x: Images, taps: Sequence[float]) -> Images:
    """Doubles height and width: inserts zeros between pixels, then convolves with twice the filter along each axis."""
    weights = 2 * np.asarray(taps)[::-1] / np.sum(taps)
    padding = len(taps) - 1 - (len(taps) - 1) // 2
    for axis in (1, 2):
        edges = [(padding, padding, 1) if i == axis else (0, 0, 0) for i in range(4)]
        spread = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
        length = spread.shape[axis] - len(taps) + 1
        x = sum(
            float(weight) * jax.lax.slice_in_dim(spread, k, k + length, axis=axis) for k, weight in enumerate(weights)
        )
    return x


RESAMPLE = {"": lambda x, taps: x, "down": down, "up": up}


def norm(channels: int, epsilon: float, group_channels: int = 4, *, rngs: nnx.Rngs) -> GroupNorm:
    """Returns a group normalization with at most 32 groups of at least `group_channels` channels.

    Raises UserError if the groups would not be equal.
    """
    groups = min(32, channels // group_channels)
    if channels % groups:
        raise UserError(f"{channels} channels do not form {groups} equal groups: choose another model.nf or ch_mult")
    return GroupNorm(channels, num_groups=groups, epsilon=epsilon, rngs=rngs)


def unbiased(channels: int, out_channels: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a linear layer without a bias."""
    return nnx.Linear(channels, out_channels, use_bias=False, rngs=rngs)


class Attention(nnx.Module):
    """Group normalization, then self-attention over all pixels. The caller adds the residual."""

    def __init__(self, channels: int, heads: int, settings: BlockSettings, *, rngs: nnx.Rngs):
        if channels % heads:
            raise UserError(f"{channels} channels do not form {heads} equal heads: choose another model.head_channels")
        self.heads = heads
        self.norm = norm(channels, settings.epsilon, settings.group_channels, rngs=rngs)
        self.query = dense(channels, channels, init_scale=0.2, rngs=rngs)
        self.key = dense(channels, channels, init_scale=0.2, rngs=rngs)
        self.value = dense(channels, channels, init_scale=0.2, rngs=rngs)
        self.out = dense(channels, channels, init_scale=0, rngs=rngs)

    def __call__(self, x: Images) -> Images:
        batch, height, width, channels = x.shape
        pixels = self.norm(x).reshape(batch, height * width, channels)
        heads = [
            layer(pixels).reshape(batch, height * width, self.heads, channels // self.heads)
            for layer in (self.query, self.key, self.value)
        ]
        return self.out(_attend(*heads).reshape(x.shape))


def _attend(
    query: Float[Array, "batch pixels heads dim"],
    key: Float[Array, "batch pixels heads dim"],
    value: Float[Array, "batch pixels heads dim"],
) -> Float[Array, "batch pixels heads dim"]:
    """Softmax attention in float32, or float64 if the inputs are (jax.nn.dot_product_attention would use float32)."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype) / query.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits).astype(value.dtype), value)


class UNetBlock(nnx.Module):
    """A residual block of two 3x3 convolutions, with optional resampling before them and attention after them.

    resample: "" (none), "down" or "up".
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        settings: BlockSettings,
        *,
        resample: str = "",
        attention: bool = False,
        rngs: nnx.Rngs,
    ):
        self.settings = settings
        self.resample = resample
        self.norm1 = norm(channels, settings.epsilon, settings.group_channels, rngs=rngs)
        self.conv1 = conv3x3(channels, out_channels, rngs=rngs)
        self.emb_dense = dense(settings.emb_dim, out_channels * (1 + settings.scales_and_shifts), rngs=rngs)
        self.norm2 = norm(out_channels, settings.epsilon, settings.group_channels, rngs=rngs)
        self.conv2 = conv3x3(out_channels, out_channels, init_scale=0, rngs=rngs)
        projects = channels != out_channels or (resample and settings.resampled_shortcut)
        self.shortcut = dense(channels, out_channels, rngs=rngs) if projects else None
        heads = settings.num_heads or out_channels // settings.head_channels
        self.attention = Attention(out_channels, heads, settings, rngs=rngs) if attention and heads else None

    def __call__(self, x: Images, emb: Embedding, rngs: nnx.Rngs | None) -> AnyArray:
        settings = self.settings
        resample = RESAMPLE[self.resample]
        h = self.conv1(resample(jax.nn.silu(self.norm1(x)), settings.taps))
        if settings.scales_and_shifts:
            scale, shift = jnp.split(self.emb_dense(emb)[:, None, None], 2, axis=-1)
            h = jax.nn.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = jax.nn.silu(self.norm2(add_to_pixels(h, self.emb_dense(emb))))
        if rngs is not None and settings.dropout:
            h = dropout(h, settings.dropout, rngs.dropout())
        x = resample(x, settings.taps)
        x = settings.scale * (self.conv2(h) + (x if self.shortcut is None else self.shortcut(x)))
        return x if self.attention is None else settings.scale * (self.attention(x) + x)


def block_maker(
    settings: BlockSettings, *, resamp_in_blocks: bool, padding: Any, rngs: nnx.Rngs
) -> Callable[..., nnx.Module]:
    """Returns the function `make_block` of `make_levels`.

    resamp_in_blocks: whether residual blocks halve and double the images. If false, convolutions do.
    padding: the padding of the convolution that halves the images.
    """

    def make_block(channels: int, out_channels: int, *, resample: str = "", attention: bool = False) -> nnx.Module:
        if resamp_in_blocks or not resample:
            return UNetBlock(channels, out_channels, settings, resample=resample, attention=attention, rngs=rngs)
        if resample == "down":
            return Downsample(channels, with_conv=True, padding=padding, rngs=rngs)
        return Upsample(channels, with_conv=True, rngs=rngs)

    return make_block


class Levels(NamedTuple):
    """The blocks of a U-Net between its first and its last convolution.

    Attributes:
      down: a list of blocks for each level, from the finest level. On all levels except the finest, the first block
        halves the image.
      up: a list of blocks for each level, from the coarsest level.
      taking: the number of blocks, at the end of each level of `up`, that take a skip connection.
      channels: the output channels of each level of `up`.
    """

    down: nnx.List
    up: nnx.List
    taking: int
    channels: list[int]


def make_levels(
    make_block: Callable[..., UNetBlock],
    widths: Sequence[int],
    attends: Sequence[bool],
    *,
    stem: int,
    num_blocks: int,
    attends_after_all: bool,
) -> Levels:
    """Makes the blocks of a U-Net with len(widths) levels.

    Args:
      make_block: called as make_block(channels, out_channels, resample="", attention=False).
      widths: the channels of each level, from the finest.
      attends: whether each level has attention.
      stem: the channels of the first convolution.
      num_blocks: the number of blocks in a level of `down`; levels of `up` have one more.
      attends_after_all: whether all blocks of a level of `up` with attention have attention. If false, only the last
        block has attention.
    """
    skips = [stem]
    levels_down, levels_up, channels = [], [], []
    for level, width in enumerate(widths):
        blocks = [make_block(skips[-1], skips[-1], resample="down")] if level else []
        skips += [skips[-1]] * len(blocks)
        for _ in range(num_blocks):
            blocks.append(make_block(skips[-1], width, attention=attends[level]))
            skips.append(width)
        levels_down.append(nnx.List(blocks))
    current = skips[-1]
    for level, width in reversed(list(enumerate(widths))):
        if level == len(widths) - 1:
            blocks = [make_block(current, current, attention=True), make_block(current, current)]
        else:
            blocks = [make_block(current, current, resample="up")]
        for index in range(num_blocks + 1):
            attention = attends[level] and (attends_after_all or index == num_blocks)
            blocks.append(make_block(current + skips.pop(), width, attention=attention))
            current = width
        levels_up.append(nnx.List(blocks))
        channels.append(current)
    return Levels(nnx.List(levels_down), nnx.List(levels_up), num_blocks + 1, channels)


def apply_up(
    blocks: nnx.List, taking: int, x: Images, skips: list[Images], emb: Embedding, rngs: nnx.Rngs | None
) -> Images:
    """Returns the output of one level of `Levels.up`. Pops skip connections from the end of `skips`."""
    for index, block in enumerate(blocks):
        if index >= len(blocks) - taking:
            x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, emb, rngs)
    return x


def class_weights(labels: Labels | None, classes: int, like: Float[Array, "batch dim"]) -> Float[Array, "_ classes"]:
    """Returns one row of class weights per image: one-hot for integer labels; a single row of zeros without labels."""
    if labels is None:
        return jnp.zeros((1, classes), like.dtype)
    labels = jnp.asarray(labels)
    return jax.nn.one_hot(labels, classes, dtype=like.dtype) if labels.ndim == 1 else labels.astype(like.dtype)


def wide(t: Real[Array, "batch"]) -> Float[Array, "batch"]:
    """Converts times to float32, or keeps them if they are float64."""
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))
