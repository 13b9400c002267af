"""Names and layouts of the network's parameters in checkpoints of the paper's code and of diffusers."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Shaped

from models.ddpm import DDPM
from models.layers import AttentionBlock, Downsample, ResnetBlock, Upsample
from models.unet2d import UNet2D


class Layout(NamedTuple):
    """Functions that convert an array from torch's layout to ours (load) and back (save)."""

    load: Callable[[Shaped[np.ndarray, "..."]], Shaped[np.ndarray, "..."]]
    save: Callable[[Shaped[np.ndarray, "..."]], Shaped[np.ndarray, "..."]]


SAME = Layout(lambda w: w, lambda w: w)
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # OIHW to HWIO
DENSE = Layout(lambda w: w.T, lambda w: w.T)  # [out, in] to [in, out]
CONV1X1 = Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # [out, in, 1, 1] to [in, out]


class Tensor(NamedTuple):
    """A parameter of the network.

    Attributes:
      path: its keys in our nnx.State.
      name: its name in the foreign file.
      layout: its layout in the foreign file.
    """

    path: tuple[str | int, ...]
    name: str
    layout: Layout


# The layers of each block, in the order of the paper's code. Each row has our name, the paper's name, diffusers' name.
LAYERS = {
    ResnetBlock: (
        ("norm1", "GroupNorm_0", "norm1"),
        ("conv1", "Conv_0", "conv1"),
        ("temb_dense", "Dense_0", "time_emb_proj"),
        ("norm2", "GroupNorm_1", "norm2"),
        ("conv2", "Conv_1", "conv2"),
        ("shortcut", "NIN_0", "conv_shortcut"),
    ),
    AttentionBlock: (
        ("norm", "GroupNorm_0", "group_norm"),
        ("query", "NIN_0", "to_q"),
        ("key", "NIN_1", "to_k"),
        ("value", "NIN_2", "to_v"),
        ("out", "NIN_3", "to_out.0"),
    ),
    Downsample: (("conv", "Conv_0", "conv"),),
    Upsample: (("conv", "Conv_0", "conv"),),
}
KINDS = {ResnetBlock: "resnets", AttentionBlock: "attentions", Downsample: "downsamplers", Upsample: "upsamplers"}

# Formats of checkpoints. The value is the column of LAYERS that has the names of this format.
PAPER = 1
DIFFUSERS = 2


def tensors(model: DDPM, file_format: int) -> Iterator[Tensor]:
    """Yields every parameter of a network, in the order of the paper's parameter list.

    file_format: PAPER or DIFFUSERS.
    """
    for index, (path, block, diffusers_name) in enumerate(_blocks(model)):
        prefix = f"all_modules.{index}" if file_format == PAPER else diffusers_name
        if type(block) not in LAYERS:
            yield from _layer_tensors(path, block, prefix)
        for names in LAYERS.get(type(block), ()):
            if (layer := getattr(block, names[0])) is not None:
                yield from _layer_tensors((*path, names[0]), layer, f"{prefix}.{names[file_format]}")


def unet2d_tensors(model: UNet2D) -> Iterator[Tensor]:
    """Yields every parameter of a UNet2D. Its path is its name in diffusers, except for the last part of the path."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        *layer, key = map(str, path)
        layout = SAME
        if key == "kernel" and len(variable.shape) == 4:
            layout = CONV
        elif key == "kernel":
            layout = CONV1X1 if layer[-1] in ("conv_shortcut", "skip_conv") else DENSE
        yield Tensor(path, ".".join([*layer, "bias" if key == "bias" else "weight"]), layout)


def _layer_tensors(path: tuple[str | int, ...], layer: nnx.Module, name: str) -> Iterator[Tensor]:
    """Yields the two parameters of a convolution, linear layer or group norm."""
    if hasattr(layer, "scale"):
        key = "scale"
        layout = SAME
    else:
        key = "kernel"
        layout = CONV if layer.kernel.ndim == 4 else DENSE
    weight = "weight"
    bias = "bias"
    if ".NIN_" in name:  # the paper's 1x1 convolutions are matrices [in, out], as here
        weight = "W"
        bias = "b"
        layout = SAME
    elif name.endswith(".conv_shortcut"):
        layout = CONV1X1
    yield Tensor((*path, key), f"{name}.{weight}", layout)
    yield Tensor((*path, "bias"), f"{name}.{bias}", SAME)


def _blocks(model: DDPM) -> Iterator[tuple[tuple[str | int, ...], nnx.Module, str]]:
    """Yields our path, the block and diffusers' name of each block. The n-th block is the paper's `all_modules.n`."""
    if hasattr(model, "temb_dense1"):
        yield ("temb_dense1",), model.temb_dense1, "time_embedding.linear_1"
        yield ("temb_dense2",), model.temb_dense2, "time_embedding.linear_2"
    yield ("conv_in",), model.conv_in, "conv_in"
    yield from _stage_blocks("down", model.down)
    for index, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield ("middle", index), model.middle[index], f"mid_block.{name}"
    yield from _stage_blocks("up", model.up)
    yield ("norm_out",), model.norm_out, "conv_norm_out"
    yield ("conv_out",), model.conv_out, "conv_out"


def _stage_blocks(side: str, stages: nnx.List) -> Iterator[tuple[tuple[str | int, ...], nnx.Module, str]]:
    """Like `_blocks`, for the stages of `down` or `up`. diffusers numbers the blocks of each kind within a level."""
    level = 0
    seen = Counter()  # number of blocks so far in this level, by kind
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage):
            kind = KINDS[type(block)]
            yield (side, i, j), block, f"{side}_blocks.{level}.{kind}.{seen[kind]}"
            seen[kind] += 1
            if kind in ("downsamplers", "upsamplers"):
                level += 1
                seen = Counter()
