"""diffusers' UNet2DModel in most of its configurations, for networks that differ from the DDPM paper's.

Modules and parameters have the same names as in diffusers, so the path of a parameter is its name in a file of weights.
The settings are those of diffusers' config.json (version 0.42).
"""

import contextlib
import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Real
from ml_collections import ConfigDict

from core.errors import UserError
from core.shapes import AnyArray, Images
from models import unet_blocks
from models.layers import (
    Downsample,
    GroupNorm,
    TimeEmbedding,
    Upsample,
    add_to_pixels,
    conv3x3,
    dense,
    dropout,
    timestep_embedding,
)

ACTIVATIONS: dict[str, Callable[[AnyArray], AnyArray]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
}
TAPS = (1, 3, 3, 1)  # the resampling filter, along one axis, of blocks with "Skip" in their name

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")
MOST_LAYERS = 100  # in a level; a damaged file could describe a network that takes too long to build

# The supported values of settings that have more values in diffusers.
SUPPORTED = {
    "_class_name": ("UNet2DModel",),
    "act_fn": tuple(ACTIVATIONS),
    "class_embed_type": (None, "timestep", "identity"),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional", "fourier", "learned"),
    "upsample_type": ("conv", "resnet"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a UNet2DModel, with the names and defaults of diffusers."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @property
    def temb_channels(self) -> int:
        """Returns the length of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def time_channels(self) -> int:
        """Returns the number of features of the time that the first layer of the time embedding receives."""
        return self.block_out_channels[0] * (2 if self.time_embedding_type == "fourier" else 1)


def read_settings(origin: Path | str, unet: Mapping[str, Any]) -> Settings:
    """Reads the settings from `unet`, the content of a config.json. origin: the name of the file in error messages.

    Raises UserError, which names the setting, if the network is not supported or cannot be built.
    """
    settings = _parsed(origin, unet)
    with _explained(origin):
        abstract(settings)
    return settings


def _parsed(origin: Path | str, unet: Mapping[str, Any]) -> Settings:
    """Reads the settings, without a check that the network can be built."""
    for key, values in SUPPORTED.items():
        if key in unet and unet[key] not in values:
            raise UserError(
                f"{origin}: {key} is {reprlib.repr(unet[key])}; supported are {', '.join(map(repr, values))}"
            )
    with _explained(origin):
        settings = Settings(**_known(unet))
        _check(settings)
    return settings


@contextlib.contextmanager
def _explained(origin: Path | str) -> Iterator[None]:
    """Turns errors due to settings that do not fit together into UserError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{origin}: not the settings of a supported UNet2DModel ({reason})") from error


def settings_of(config: ConfigDict) -> Settings:
    """Returns the settings of the network of the config. Raises UserError if a setting is not supported."""
    try:
        unet = json.loads(config.model.unet2d)
    except ValueError as error:
        raise UserError(f"config.model.unet2d: not JSON ({error})") from error
    if unknown := unet.keys() - {field.name for field in dataclasses.fields(Settings)}:
        raise UserError(f"config.model.unet2d: no setting {min(unknown)!r} of a UNet2DModel")
    channels = config.data.num_channels
    fields = {"in_channels": channels, "out_channels": channels * (1 + config.model.learned_variance)}
    return _parsed("config.model.unet2d", {**unet, **fields, "sample_size": config.data.image_size})


def as_json(settings: Settings) -> str:
    """Returns the value of config.model.unet2d for these settings.

    It leaves out the defaults of diffusers, and the settings that config.data has.
    """
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if value != getattr(Settings(), name)}
    elsewhere = ("in_channels", "out_channels", "sample_size")
    return json.dumps({name: value for name, value in kept.items() if name not in elsewhere})


def _known(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a network depends on, with lists as tuples and old names of blocks replaced."""
    known = {field.name for field in dataclasses.fields(Settings)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in unet.items() if key in known}
    for key in given.keys() & {"down_block_types", "up_block_types"}:
        given[key] = tuple(name.removeprefix("UNetRes") for name in given[key])  # the prefix until diffusers 0.2
    return given


def _check(settings: Settings) -> None:
    """Raises ValueError if the levels are of types, or in an order, that are not supported."""
    for side, kinds, known in (
        ("down_block_types", settings.down_block_types, DOWN_BLOCKS),
        ("up_block_types", settings.up_block_types, UP_BLOCKS),
    ):
        if unknown := set(kinds) - set(known):
            raise ValueError(f"{side} has {min(unknown)}; supported are {', '.join(known)}")
    for kinds in (settings.down_block_types, settings.up_block_types[::-1]):  # both from the finest level
        smooths = ["Skip" in kind for kind in kinds]
        if smooths != sorted(smooths, reverse=True):
            raise ValueError("blocks with Skip in their name must be at the finest levels")
    if not 1 <= settings.layers_per_block <= MOST_LAYERS:
        raise ValueError(f"layers_per_block is {settings.layers_per_block}, not 1 to {MOST_LAYERS}")


def abstract(settings: Settings) -> "UNet2D":
    """Returns the network with shapes in place of parameters.

    Inconsistent settings raise ValueError or another exception (see `_explained`).
    """
    return nnx.eval_shape(lambda: UNet2D(settings, rngs=nnx.Rngs(0)))


# The kinds of resampling. "" is the kind of a block that does not resample.
RESAMPLE: dict[str, Callable[[Images], Images]] = {
    "": lambda x: x,
    "down": lambda x: nnx.avg_pool(x, (2, 2), strides=(2, 2)),
    "up": lambda x: x.repeat(2, axis=1).repeat(2, axis=2),
    "smooth_down": partial(unet_blocks.down, taps=TAPS),
    "smooth_up": partial(unet_blocks.up, taps=TAPS),
}


def narrow_groups(channels: int) -> int:
    """Returns the number of groups if the settings do not give it: at most 32, with at least 4 channels each."""
    return min(channels // 4, 32)


def norm(channels: int, groups: int, settings: Settings, *, rngs: nnx.Rngs) -> GroupNorm:
    """Returns a group normalization."""
    return GroupNorm(channels, num_groups=groups, epsilon=settings.norm_eps, rngs=rngs)


class Resnet(nnx.Module):
    """A residual block: norm, activation, resampling, convolution, time embedding, norm, activation, convolution.

    groups: the number of groups of each norm.
    resample: a key of RESAMPLE.
    divisor: the residual sum is divided by it.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        settings: Settings,
        *,
        groups: tuple[int, int],
        resample: str = "",
        divisor: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.act = ACTIVATIONS[settings.act_fn]
        self.resample = resample
        self.divisor = divisor
        self.dropout = settings.dropout
        self.scales = settings.resnet_time_scale_shift == "scale_shift"
        self.norm1 = norm(channels, groups[0], settings, rngs=rngs)
        self.conv1 = conv3x3(channels, out_channels, rngs=rngs)
        self.time_emb_proj = dense(settings.temb_channels, out_channels * (1 + self.scales), rngs=rngs)
        self.norm2 = norm(out_channels, groups[1], settings, rngs=rngs)
        self.conv2 = conv3x3(out_channels, out_channels, init_scale=0, rngs=rngs)
        projects = channels != out_channels or resample.startswith("smooth")
        self.conv_shortcut = dense(channels, out_channels, rngs=rngs) if projects else None

    def __call__(self, x: Images, temb: TimeEmbedding, rngs: nnx.Rngs | None) -> AnyArray:
        h = self.conv1(RESAMPLE[self.resample](self.act(self.norm1(x))))
        values = self.time_emb_proj(self.act(temb))
        if self.scales:
            scale, shift = jnp.split(values[:, None, None], 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(add_to_pixels(h, values))
        h = self.act(h)
        if rngs is not None and self.dropout:
            h = dropout(h, self.dropout, rngs.dropout())
        x = RESAMPLE[self.resample](x)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return (shortcut + self.conv2(h)) / self.divisor


class Attention(nnx.Module):
    """A residual block of self-attention over all pixels.

    groups: the number of groups of the norm; None for no norm.
    divisor: the residual sum is divided by it.
    """

    def __init__(self, channels: int, settings: Settings, *, groups: int | None, divisor: float = 1.0, rngs: nnx.Rngs):
        self.head_dim = settings.attention_head_dim or channels
        self.divisor = divisor
        inner = channels // self.head_dim * self.head_dim
        self.group_norm = None if groups is None else norm(channels, groups, settings, rngs=rngs)
        self.to_q = dense(channels, inner, rngs=rngs)
        self.to_k = dense(channels, inner, rngs=rngs)
        self.to_v = dense(channels, inner, rngs=rngs)
        self.to_out = nnx.List([dense(inner, channels, init_scale=0, rngs=rngs)])

    def __call__(self, x: Images) -> Images:
        batch, height, width, _ = x.shape
        pixels = (x if self.group_norm is None else self.group_norm(x)).reshape(batch, height * width, -1)
        heads = [
            layer(pixels).reshape(batch, height * width, -1, self.head_dim)
            for layer in (self.to_q, self.to_k, self.to_v)
        ]
        attended = jax.nn.dot_product_attention(*heads).reshape(batch, height * width, -1)
        return (x + self.to_out[0](attended).reshape(x.shape)) / self.divisor


class LevelMaker:
    """Makes the blocks of one level of the type `kind`, with `channels` output channels.

    Attributes:
      smooths: whether the level is of a type with "Skip" in its name. Such a level resamples with a smoothing filter.
        It also resamples an image, which it receives and passes on besides the features.
    """

    def __init__(self, kind: str, channels: int, settings: Settings, rngs: nnx.Rngs):
        self.kind = kind
        self.channels = channels
        self.settings = settings
        self.rngs = rngs
        self.smooths = "Skip" in kind
        self.attends = "Attn" in kind
        self.divisor = math.sqrt(2) if self.smooths else 1.0

    def resnet(self, channels: int, skip: int = 0, resample: str = "") -> Resnet:
        """Makes a block. Its input has `channels` channels, followed by `skip` channels of a skip connection."""
        groups = groups_out = self.settings.norm_num_groups
        if self.smooths:
            groups, groups_out = narrow_groups(channels + skip), narrow_groups(self.channels)
        if skip and self.kind == "AttnSkipUpBlock2D":
            groups = min(channels + skip // 4, 32)  # as in diffusers, which probably means (channels + skip) // 4
        return Resnet(
            channels + skip,
            self.channels,
            self.settings,
            groups=(groups, groups_out),
            resample=resample,
            divisor=self.divisor,
            rngs=self.rngs,
        )

    def attentions(self, count: int) -> nnx.List:
        """Makes `count` blocks of attention, or none if the level has no attention."""
        groups = 32 if self.smooths else self.settings.norm_num_groups
        options = {"groups": groups, "divisor": self.divisor, "rngs": self.rngs}
        return nnx.List(Attention(self.channels, self.settings, **options) for _ in range(count * self.attends))

    def downsampler(self) -> Resnet | Downsample:
        """Makes a block that halves height and width."""
        if self._resamples_by_resnet(self.settings.downsample_type):
            return self.resnet(self.channels, resample="down")
        before = self.settings.downsample_padding
        padding = ((before, 1), (before, 1))
        return Downsample(self.channels, with_conv=True, padding=padding, rngs=self.rngs)

    def upsampler(self) -> Resnet | Upsample:
        """Makes a block that doubles height and width."""
        if self._resamples_by_resnet(self.settings.upsample_type):
            return self.resnet(self.channels, resample="up")
        return Upsample(self.channels, with_conv=True, rngs=self.rngs)

    def _resamples_by_resnet(self, resample_type: str) -> bool:
        return self.kind.startswith("Resnet") or (self.attends and resample_type == "resnet")


class DownLevel(nnx.Module):
    """One level of the encoder: `resnets` and `attentions`, then a halving unless the level is the last."""

    def __init__(self, kind: str, channels: int, out_channels: int, settings: Settings, *, last: bool, rngs: nnx.Rngs):
        make = LevelMaker(kind, out_channels, settings, rngs)
        count = settings.layers_per_block
        self.resnets = nnx.List(make.resnet(out_channels if index else channels) for index in range(count))
        self.attentions = make.attentions(count)
        smooths = make.smooths and not last
        self.resnet_down = make.resnet(out_channels, resample="smooth_down") if smooths else None
        self.skip_conv = dense(settings.in_channels, out_channels, rngs=rngs) if smooths else None
        self.downsamplers = nnx.List([] if last or smooths else [make.downsampler()])

    def __call__(
        self, x: Images, image: Images, temb: TimeEmbedding, rngs: nnx.Rngs | None
    ) -> tuple[list[Images], Images]:
        """Returns the outputs of all blocks, and the image at the size of the last output.

        image: the input of the network at the size of x; only levels with "Skip" in their name use it.
        """
        outputs = []
        for resnet, attention in _blocks(self):
            x = attention(resnet(x, temb, rngs))
            outputs.append(x)
        outputs += [block(x, temb, rngs) for block in self.downsamplers]
        if self.resnet_down is not None:
            image = RESAMPLE["smooth_down"](image)
            outputs.append(self.skip_conv(image) + self.resnet_down(x, temb, rngs))
        return outputs, image


class UpLevel(nnx.Module):
    """One level of the decoder: `resnets` and `attentions`, then a doubling unless the level is the last.

    skips: the channels of the skip connections that the level takes, in order.
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        out_channels: int,
        settings: Settings,
        *,
        skips: list[int],
        last: bool,
        rngs: nnx.Rngs,
    ):
        make = LevelMaker(kind, out_channels, settings, rngs)
        self.smooths = make.smooths
        self.resnets = nnx.List(
            make.resnet(out_channels if index else channels, skip) for index, skip in enumerate(skips)
        )
        self.attentions = make.attentions(1 if make.smooths else len(skips))
        smooths = make.smooths and not last
        groups = narrow_groups(out_channels)
        self.resnet_up = make.resnet(out_channels, resample="smooth_up") if smooths else None
        self.skip_norm = norm(out_channels, groups, settings, rngs=rngs) if smooths else None
        self.skip_conv = conv3x3(out_channels, settings.out_channels, rngs=rngs) if smooths else None
        self.upsamplers = nnx.List([] if last or smooths else [make.upsampler()])

    def __call__(
        self, x: Images, image: Images | None, skips: list[Images], temb: TimeEmbedding, rngs: nnx.Rngs | None
    ) -> tuple[AnyArray, Images | None]:
        """Returns the output, and the sum of the images that all levels so far have contributed to the prediction.

        image: the sum of the earlier levels, or None. Skip connections are popped from the end of `skips`.
        """
        for resnet, attention in _blocks(self):
            x = attention(resnet(jnp.concatenate([x, skips.pop()], axis=-1), temb, rngs))
        if self.smooths and image is not None:
            image = RESAMPLE["smooth_up"](image)
        if self.resnet_up is not None:
            contribution = self.skip_conv(jax.nn.silu(self.skip_norm(x)))
            image = contribution if image is None else image + contribution
            x = self.resnet_up(x, temb, rngs)
        for block in self.upsamplers:
            x = block(x, temb, rngs)
        return x, image


def _blocks(level: DownLevel | UpLevel) -> Iterator[tuple[Resnet, Callable[[Images], Images]]]:
    """Yields each Resnet with the attention after it.

    If there are fewer attentions than Resnets, the last Resnets have them. The others have the identity instead.
    """
    without = len(level.resnets) - len(level.attentions)
    yield from zip(level.resnets, [*[lambda x: x] * without, *level.attentions], strict=True)


class Middle(nnx.Module):
    """Two Resnets at the coarsest level, with attention between them if settings.add_attention."""

    def __init__(self, settings: Settings, *, rngs: nnx.Rngs):
        channels = settings.block_out_channels[-1]
        divisor = settings.mid_block_scale_factor
        groups = settings.norm_num_groups or narrow_groups(channels)
        options = {"groups": (groups, groups), "divisor": divisor, "rngs": rngs}
        self.resnets = nnx.List(Resnet(channels, channels, settings, **options) for _ in range(2))
        normed = settings.resnet_time_scale_shift == "default"
        attention_groups = settings.attn_norm_num_groups or (groups if normed else None)
        self.attentions = nnx.List()
        if settings.add_attention:
            self.attentions.append(Attention(channels, settings, groups=attention_groups, divisor=divisor, rngs=rngs))

    def __call__(self, x: Images, temb: TimeEmbedding, rngs: nnx.Rngs | None) -> Images:
        x = self.resnets[0](x, temb, rngs)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, temb, rngs)


class Fourier(nnx.Module):
    """Sines, then cosines, of log(sigma) at frequencies that are parameters."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(16 * jax.random.normal(rngs.params(), (channels,)))

    def __call__(self, sigma: Real[Array, "batch"]) -> Float[Array, "batch dim"]:
        angles = 2 * jnp.pi * jnp.log(sigma)[:, None] * self.weight[...]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Mlp(nnx.Module):
    """Two linear layers."""

    def __init__(self, channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.linear_1 = dense(channels, out_channels, rngs=rngs)
        self.linear_2 = dense(out_channels, out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "batch dim"]) -> TimeEmbedding:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


def _time_proj(settings: Settings, rngs: nnx.Rngs) -> Fourier | nnx.Embed | None:
    """Makes the layer that computes features of the time, or None if these have no parameters."""
    if settings.time_embedding_type == "fourier":
        return Fourier(settings.block_out_channels[0], rngs=rngs)
    if settings.time_embedding_type == "learned":
        return nnx.Embed(settings.num_train_timesteps, settings.block_out_channels[0], rngs=rngs)
    return None


def _class_embedding(settings: Settings, rngs: nnx.Rngs) -> Mlp | nnx.Embed | None:
    if settings.class_embed_type == "timestep":
        return Mlp(settings.time_channels, settings.temb_channels, rngs=rngs)
    if settings.class_embed_type is None and settings.num_class_embeds is not None:
        return nnx.Embed(settings.num_class_embeds, settings.temb_channels, rngs=rngs)
    return None


class UNet2D(nnx.Module):
    """The network of `settings`.

    The scheduler in the network's folder says what the network predicts. With settings.time_embedding_type "fourier",
    the time is sigma, and x has the variance of the data plus sigma^2.
    """

    def __init__(self, settings: Settings, *, rngs: nnx.Rngs):
        self.settings = settings
        self.dtype = jnp.dtype("float32")
        widths = settings.block_out_channels
        self.conv_in = conv3x3(settings.in_channels, widths[0], rngs=rngs)
        self.time_proj = _time_proj(settings, rngs)
        self.time_embedding = Mlp(settings.time_channels, settings.temb_channels, rngs=rngs)
        self.class_embedding = _class_embedding(settings, rngs)
        self._make_levels(settings, rngs)
        self.conv_norm_out = norm(widths[0], settings.norm_num_groups or narrow_groups(widths[0]), settings, rngs=rngs)
        self.conv_out = conv3x3(widths[0], settings.out_channels, init_scale=0, rngs=rngs)

    @classmethod
    def of_config(cls, config: ConfigDict, *, rngs: nnx.Rngs) -> "UNet2D":
        """Creates the network of config.model.unet2d, for the images of config.data."""
        with _explained("config.model.unet2d"):
            return cls(settings_of(config), rngs=rngs)

    def _make_levels(self, settings: Settings, rngs: nnx.Rngs) -> None:
        channels = settings.block_out_channels[0]
        skips = [channels]
        last = len(settings.block_out_channels) - 1
        self.down_blocks = nnx.List()
        for level, (kind, width) in enumerate(zip(settings.down_block_types, settings.block_out_channels, strict=True)):
            self.down_blocks.append(DownLevel(kind, channels, width, settings, last=level == last, rngs=rngs))
            skips += [width] * (settings.layers_per_block + (level < last))
            channels = width
        self.mid_block = Middle(settings, rngs=rngs) if settings.mid_block_type else None
        self.up_blocks = nnx.List()
        for level, (kind, width) in enumerate(
            zip(settings.up_block_types, reversed(settings.block_out_channels), strict=True)
        ):
            taken = [skips.pop() for _ in range(settings.layers_per_block + 1)]
            self.up_blocks.append(UpLevel(kind, channels, width, settings, skips=taken, last=level == last, rngs=rngs))
            channels = width

    def __call__(
        self, x: Images, t: Real[Array, "batch"], rngs: nnx.Rngs | None = None, labels: AnyArray | None = None
    ) -> Images:
        """Returns the prediction for x at times t. Dropout is applied if `rngs` is given.

        labels: the class of each image if settings.num_class_embeds is set; a number for each image if
          settings.class_embed_type is "timestep", an embedding if it is "identity".
        """
        temb = self._embedding(t, labels).astype(x.dtype)
        image = x = 2 * x - 1 if self.settings.center_input_sample else x
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            outputs, image = level(skips[-1], image, temb, rngs)
            skips += outputs
        x = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], temb, rngs)
        image = None
        for level in self.up_blocks:
            x, image = level(x, image, skips, temb, rngs)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        x = x if image is None else x + image
        return x / t[:, None, None, None] if self.settings.time_embedding_type == "fourier" else x

    def _embedding(self, t: Real[Array, "batch"], labels: AnyArray | None) -> TimeEmbedding:
        has_classes = self.class_embedding is not None or self.settings.class_embed_type is not None
        if has_classes and labels is None:
            raise UserError("the network has classes, so labels must be given")
        temb = self.time_embedding(self._features(t))
        if not has_classes:
            return temb
        if self.settings.class_embed_type == "timestep":
            labels = self._features(labels)
        return temb + (labels if self.class_embedding is None else self.class_embedding(labels))

    def _features(self, t: Real[Array, "batch"]) -> Float[Array, "batch dim"]:
        """Computes the features of the time that the time embedding receives."""
        settings = self.settings
        if settings.time_embedding_type == "positional":
            dim = settings.block_out_channels[0]
            return timestep_embedding(t, dim, shift=settings.freq_shift, cos_first=settings.flip_sin_to_cos)
        return self.time_proj(t.astype(int) if settings.time_embedding_type == "learned" else t)
