"""Reads networks of improved-diffusion and guided-diffusion (github.com/openai) from their .pt files.

A .pt file has named arrays and no description of its network. So config.json beside the file must have the arguments
of UNetModel. It must also have `diffusion_steps`, `noise_schedule` and `rescale_timesteps` if they differ from 1000,
"linear" and true.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Shaped
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_json
from models import Params, abstract_params
from models.torch_file import read_pth
from models.weights import Convert, fill_renamed

KNOWN = {
    *("in_channels", "out_channels", "model_channels", "num_res_blocks", "attention_resolutions", "channel_mult"),
    *("image_size", "image_size_used", "num_classes", "num_heads", "num_head_channels", "use_scale_shift_norm"),
    *("resblock_updown", "use_new_attention_order", "dropout", "use_fp16", "use_checkpoint", "num_heads_upsample"),
    *("diffusion_steps", "noise_schedule", "rescale_timesteps", "conv_resample", "dims"),
}
SCHEDULES = {"linear": "linear", "cosine": "cosine"}


def network_fields(path: Path) -> dict[str, Any]:
    """Returns the config fields of the network in a .pt file, from the config.json beside it.

    Raises UserError if there is no config.json, or if it describes a network that is not supported.
    """
    given = _arguments(path)
    try:
        if unknown := given.keys() - KNOWN:
            raise ValueError(f"the argument {min(unknown)!r} is not known")
        if not given.get("conv_resample", True) or given.get("dims", 2) != 2:
            raise ValueError("conv_resample=False and dims other than 2 are not supported")
        size = given.get("image_size_used") or given["image_size"]
        steps = given.get("diffusion_steps", 1000)
        per_head = given.get("num_head_channels", -1)
        return {
            "model.name": "adm",
            "model.nf": given["model_channels"],
            "model.ch_mult": given.get("channel_mult", [1, 2, 4, 8]),
            "model.num_res_blocks": given["num_res_blocks"],
            "model.attn_resolutions": [size // factor for factor in given["attention_resolutions"]],
            "model.dropout": float(given.get("dropout", 0)),
            "model.label_dim": given.get("num_classes") or 0,
            "model.num_heads": given.get("num_heads", 1) if per_head == -1 else 0,
            "model.head_channels": 64 if per_head == -1 else per_head,
            "model.group_channels": 1,
            "model.scale_shift": given.get("use_scale_shift_norm", False),
            "model.resamp_in_blocks": given.get("resblock_updown", False),
            "model.learned_variance": given["out_channels"] == 2 * given["in_channels"],
            "model.num_scales": steps,
            "model.convention": "rescaled" if given.get("rescale_timesteps", True) else "ddpm",
            "schedule.name": SCHEDULES[given.get("noise_schedule", "linear")],
            "data.image_size": size,
            "data.num_channels": given["in_channels"],
        }
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"it lacks or has an unknown {error}" if isinstance(error, LookupError) else error
        raise UserError(f"{path.parent / 'config.json'}: its network cannot be rebuilt ({reason})") from error


def load_guided(path: Path, config: ConfigDict) -> Params:
    """Reads the weights of a .pt file for the network of the config.

    Raises UserError as `read_pth` and `fill_renamed` do.
    """
    weights = read_pth(path)
    if not isinstance(weights, dict) or not all(isinstance(array, np.ndarray) for array in weights.values()):
        raise UserError(
            f"{path}: not a dict of tensors; give the model or the EMA file that the project's training wrote"
        )
    network = nnx.merge(*abstract_params(config))
    names = dict(_names(network))
    new_order = bool(_arguments(path).get("use_new_attention_order", False))

    def foreign(keys: tuple[str | int, ...]) -> tuple[str, Convert]:
        *place, leaf = keys
        kind = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
        name, part, heads = names[tuple(place)]
        if part is not None:
            return f"{name}.{kind}", lambda array: _to_ours(_part_of_qkv(array, part, heads, new_order=new_order))
        return f"{name}.{kind}", (lambda array: array) if name == "label_emb" else _to_ours

    return fill_renamed(path, config, weights, foreign)


def _arguments(path: Path) -> dict[str, Any]:
    file = path.parent / "config.json"
    if not file.exists():
        raise UserError(f"{path} does not describe its network: put the arguments of its UNetModel into {file}")
    return read_json(file)


Place = tuple[str | int, ...]
"""The path of a layer or block in our network."""

OUTER = {
    "emb_dense1": "time_embed.0",
    "emb_dense2": "time_embed.2",
    "label_dense": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb_dense": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
PARTS = ("query", "key", "value")


def _names(network: nnx.Module) -> Iterator[tuple[Place, tuple[str, int | None, int]]]:
    """Yields for each layer of our network: its place, and (its foreign name, part, heads).

    part: the index in PARTS if the layer is a part of a joint qkv layer, otherwise None.
    """
    for ours, theirs in OUTER.items():
        yield (ours,), (theirs, None, 0)
    for place, block, name, attention in _blocks(network):
        if hasattr(block, "conv"):
            yield (*place, "conv"), (f"{name}.{'op' if place[0] == 'down' else 'conv'}", None, 0)
            continue
        for ours, theirs in INNER.items():
            yield (*place, ours), (f"{name}.{theirs}", None, 0)
        yield (*place, "attention", "norm"), (f"{attention}.norm", None, 0)
        yield (*place, "attention", "out"), (f"{attention}.proj_out", None, 0)
        for part, ours in enumerate(PARTS):
            if block.attention is not None:
                yield (*place, "attention", ours), (f"{attention}.qkv", part, block.attention.heads)


def _blocks(network: nnx.Module) -> Iterator[tuple[Place, nnx.Module, str, str]]:
    """Yields for each block: place, block, foreign name of the block, foreign name of its attention."""
    down = [(("down", level, i), block) for level, blocks in enumerate(network.down) for i, block in enumerate(blocks)]
    for index, (place, block) in enumerate(down):
        yield place, block, f"input_blocks.{index + 1}.0", f"input_blocks.{index + 1}.1"
    yield ("up", 0, 0), network.up[0][0], "middle_block.0", "middle_block.1"
    yield ("up", 0, 1), network.up[0][1], "middle_block.2", ""
    index = -1
    attends = False
    for level, blocks in enumerate(network.up):
        for i, block in enumerate(blocks):
            if i >= len(blocks) - network.taking:
                index += 1
                attends = block.attention is not None
                yield ("up", level, i), block, f"output_blocks.{index}.0", f"output_blocks.{index}.1"
            elif level:  # in the file, a block that doubles the image is the last part of the output block before it
                yield ("up", level, i), block, f"output_blocks.{index}.{1 + attends}", ""


def _part_of_qkv(
    array: Shaped[np.ndarray, "..."], part: int, heads: int, *, new_order: bool
) -> Shaped[np.ndarray, "..."]:
    """Extracts query, key or value of a joint qkv layer.

    The output channels of the layer have the axes (part, head, channel) if new_order, else (head, part, channel).
    """
    axes = (3, heads) if new_order else (heads, 3)
    split = array.reshape(*axes, -1, *array.shape[1:])
    chosen = split[part] if new_order else split[:, part]
    return chosen.reshape(-1, *array.shape[1:])


def _to_ours(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Converts to our layout: [out, in, height, width] to [height, width, in, out]; 1x1 and dense to [in, out]."""
    if array.ndim == 3:
        array = array[:, :, 0]
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array[0, 0] if array.shape[:2] == (1, 1) else array
    return array.T
