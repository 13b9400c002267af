"""Imports DDPM weights from the paper's PyTorch code and from diffusers' UNet2DModel, and exports to diffusers."""

import itertools
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_json
from models import abstract_params
from models.ddpm import DDPM
from models.diffusers_folder import find_settings, find_weights, read_weights, write_folder
from models.diffusers_schedule import SCHEDULER, check_schedulers, scheduler_settings
from models.torch_file import read_pth
from models.torch_names import DIFFUSERS, PAPER, Tensor, tensors, unet2d_tensors
from models.unet2d_file import unet2d_config
from models.weights import require_finite


class ForeignCheckpoint(NamedTuple):
    """The training step, the raw weights, and the exponential moving average of the weights."""

    step: int
    params: nnx.State
    ema: nnx.State


# For each setting of a UNet2DModel: its value for the DDPM paper's network, and diffusers' value if it is missing.
UNET_SETTINGS = {
    "_class_name": ("UNet2DModel", None),
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attention_head_dim": (None, 8),
    "attn_norm_num_groups": (None, None),
    "class_embed_type": (None, None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (1e-6, 1e-5),
    "num_class_embeds": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
# Config fields for which a UNet2DModel allows only one value.
UNET_FIELDS = {
    "model.name": "ddpm",
    "model.convention": "ddpm",
    "model.patch_size": 1,
    "model.conditional": True,
    "model.nonlinearity": "swish",
    "model.resamp_with_conv": True,
}


def load_foreign(path: str | Path, config: ConfigDict) -> ForeignCheckpoint:
    """Reads the weights of a .pth of the paper's code, or of diffusers, for the network of the config.

    path: the .pth; or a folder or pipeline of diffusers, or a file in it. diffusers stores one set of weights and no
      step, so `params` and `ema` are equal and the step is 0.

    The weights are converted to float32. No code from the file is executed.

    Raises UserError if the file is damaged, if the network or the noise schedule differs from the config, or if a
    weight is not finite. The message names the config fields or the settings in diffusers that differ.
    """
    path = Path(path)
    if path.is_dir() or path.suffix in (".safetensors", ".bin", ".json"):
        return _load_diffusers(path, config)
    return _load_paper(path, config)


def export_diffusers(path: str | Path, config: ConfigDict, params: nnx.State) -> None:
    """Writes a new folder for diffusers' `UNet2DModel.from_pretrained`, atomically.

    Raises UserError if the folder exists, or if UNet2DModel cannot represent the network of the config.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; name a new folder for the export")
    if config.model.name == "unet2d":
        unet = unet2d_config(config)
        expected = unet2d_tensors(_network(config))
    else:
        _check_fields(path, config, UNET_FIELDS, whose="that of every UNet2DModel")
        unet = _unet_config(config)
        expected = tensors(_network(config), DIFFUSERS)
    arrays = {keys: np.asarray(variable[...]) for keys, variable in nnx.to_flat_state(params)}
    weights = {tensor.name: tensor.layout.save(arrays[tensor.path]) for tensor in expected}
    write_folder(path, {"config.json": unet, SCHEDULER: scheduler_settings(config)}, weights)


def _load_paper(path: Path, config: ConfigDict) -> ForeignCheckpoint:
    match read_pth(path):
        case {"model": dict(named), "ema": {"shadow_params": list(shadow)}, "step": (int() | np.ndarray()) as step}:
            weights = {str(name).removeprefix("module."): array for name, array in named.items()}
        case _:
            raise UserError(
                f"{path}: not a checkpoint of the paper's code, which is a dict of model, step and ema (with a list "
                "shadow_params); give a file that its training wrote"
            )
    weights.pop("sigmas", None)  # score_sde saves a table of noise levels with every network; DDPM does not use it
    _check_fields(path, config, _paper_fields(path, weights, config.data.image_size))
    model = _network(config)
    expected = list(tensors(model, PAPER))
    if len(shadow) != len(expected):
        raise UserError(
            f"{path}: the EMA has {len(shadow)} tensors, but the network has {len(expected)}; fetch the file anew"
        )
    ema = {tensor.name: array for tensor, array in zip(expected, shadow, strict=True)}
    return ForeignCheckpoint(
        _step(path, step),
        params=_state(path, model, expected, weights),
        ema=_state(f"{path}, EMA", model, expected, ema),
    )


def _step(path: Path, step: int | Shaped[np.ndarray, "..."]) -> int:
    """Returns the training step, which the file stores as a number or as a tensor with one element."""
    number = np.asarray(step)
    if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= number.item() < 2**31:
        raise UserError(f"{path}: its step is not one whole number from 0 to 2^31; fetch the file anew")
    return number.item()


def _load_diffusers(source: Path, config: ConfigDict) -> ForeignCheckpoint:
    settings = find_settings(source)
    _check_fields(source, config, _unet_fields(settings, config.data.image_size))
    check_schedulers(settings.parent, config)
    model = _network(config)
    weights = find_weights(source, settings)
    params = _state(weights, model, tensors(model, DIFFUSERS), read_weights(weights))
    return ForeignCheckpoint(0, params, params)


def _network(config: ConfigDict) -> DDPM:
    """Returns the network of the config, with shapes in place of values."""
    return nnx.merge(*abstract_params(config))


def _state(path: Path | str, model: nnx.Module, expected: Iterable[Tensor], weights: Mapping[str, Any]) -> nnx.State:
    """Fills the parameters of the abstract `model` with the weights of a foreign file.

    expected: the tensors that the file must have.
    path: for error messages.

    Raises UserError if an array is missing, left over, of another shape, not floating point, or not finite.
    """
    variables = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    leaves = []
    names = set()
    for tensor in expected:
        variable = variables[tensor.path]
        array = weights.get(tensor.name)
        shape = tensor.layout.save(np.broadcast_to(0, variable.shape)).shape
        if not isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.floating) or array.shape != shape:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UserError(f"{path}: {tensor.name} should be floats of shape {shape}, found {found}; fetch it anew")
        values = jnp.array(tensor.layout.load(array), variable.dtype)
        require_finite(path, tensor.name, np.asarray(values))
        leaves.append((tensor.path, variable.replace(values)))
        names.add(tensor.name)
    if extra := weights.keys() - names:
        raise UserError(f"{path}: holds {reprlib.repr(sorted(extra))}, which the network of the config lacks")
    return nnx.from_flat_state(leaves)


def _our_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the config fields that determine the network. attn_resolutions has only sizes of its levels."""
    model = config.model
    data = config.data
    return {
        "data.image_size": data.image_size,
        "data.num_channels": data.num_channels,
        "data.centered": data.centered,
        "model.name": model.name,
        "model.convention": model.convention,
        "model.conditional": model.conditional,
        "model.nonlinearity": model.nonlinearity,
        "model.nf": model.nf,
        "model.num_groups": model.num_groups,
        "model.patch_size": model.patch_size,
        "model.prediction": model.prediction,
        "model.ch_mult": tuple(model.ch_mult),
        "model.num_res_blocks": model.num_res_blocks,
        "model.resamp_with_conv": model.resamp_with_conv,
        "model.attn_resolutions": _resolutions(_attends(config), data.image_size),
    }


def _attends(config: ConfigDict) -> list[bool]:
    """Returns whether each level has attention, from the finest level to the coarsest."""
    sizes = [config.data.image_size >> level for level in range(len(config.model.ch_mult))]
    return [size in config.model.attn_resolutions for size in sizes]


def _resolutions(attends: Iterable[bool], image_size: int) -> tuple[int, ...]:
    """The inverse of `_attends`."""
    return tuple(image_size >> level for level, attend in enumerate(attends) if attend)


def _multiples(channels: Iterable[int], nf: int) -> tuple[float, ...]:
    """Returns the channels divided by nf, as integers if possible."""
    return tuple(count // nf if count % nf == 0 else count / nf for count in channels)


def _check_fields(path: Path, config: ConfigDict, fields: Mapping[str, Any], whose: str = "the file's") -> None:
    """Raises UserError if fields of the config differ from `fields`; the message names all of them."""
    ours = _our_fields(config)
    wrong = [
        f"config.{name} is {ours[name]}, {whose} is {reprlib.repr(value)}"
        for name, value in fields.items()
        if ours[name] != value
    ]
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}; the two must agree")


def _paper_fields(path: Path, weights: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Infers the config fields of a network of the paper's code from the names and shapes of its weights.

    Every module is represented by a letter (see `_letter`). A regular expression then matches the sequence: time
    embedding (DD) if any, convolution, levels of ResNet blocks with or without attention, norm, convolution.

    Raises UserError if the weights belong to another kind of network.
    """
    modules = _paper_modules(weights)
    letters = "".join(map(_letter, modules))
    match = re.fullmatch("(DD)?C((?:(?:RA?)+(?:S|(?=N)))+)NC", letters)
    if not match or match[2].count("S") % 2 or 0 in modules[match.start(2) - 1]["weight"]:
        raise UserError(f"{path}: its model is not the paper's DDPM network; give a checkpoint that its training wrote")

    first = match.start(2)
    nf, num_channels, *_ = modules[first - 1]["weight"]
    segments = match[2].split("S")  # one for each level of `down`, the last with `middle`; then for each level of `up`
    *down, middle = segments[: len(segments) // 2 + 1]
    starts = list(itertools.accumulate((len(level) + 1 for level in down), initial=first))
    num_res_blocks = down[0].count("R") if down else (middle.count("R") - 3) // 2
    attends = [*("A" in level for level in down), middle.count("A") > 1]
    fields = {
        "model.name": "ddpm",
        "model.convention": "ddpm",
        "data.num_channels": num_channels,
        "model.conditional": bool(match[1]),
        "model.nf": nf,
        "model.num_groups": 32,
        "model.patch_size": 1,
        "model.prediction": "eps",
        "model.ch_mult": _multiples([modules[start]["Conv_1.weight"][0] for start in starts], nf),
        "model.num_res_blocks": num_res_blocks,
        "model.attn_resolutions": _resolutions(attends, image_size),
    }
    if down:
        fields["model.resamp_with_conv"] = bool(modules[starts[1] - 1])
    if letters.count("A") != 1 + sum(attends) * (2 * num_res_blocks + 1):
        raise UserError(f"{path}: a level has attention after some blocks only; the paper's network has it after all")
    return fields


def _paper_modules(weights: Mapping[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Returns, for each of the paper's `all_modules`, the shapes of its parameters by name."""
    modules = defaultdict(dict)
    for name, array in weights.items():
        match name.split(".", 2):
            case "all_modules", index, parameter if index.isdecimal() and len(index) < 5:
                modules[int(index)][parameter] = array.shape if isinstance(array, np.ndarray) else ()
    return [modules[index] for index in range(max(modules, default=-1) + 1)]


def _letter(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Classifies a module: R ResNet block, A attention, S change of resolution, C convolution, D dense, N norm."""
    if "NIN_3.W" in shapes:
        return "A"
    if len(shapes.get("Conv_1.weight", ())) == 4:
        return "R"
    if not shapes or "Conv_0.weight" in shapes:
        return "S"
    return {4: "C", 2: "D", 1: "N"}.get(len(shapes.get("weight", ())), "?")


def _unet_fields(file: Path, image_size: int) -> dict[str, Any]:
    """Returns the config fields that correspond to the config.json of a UNet2DModel.

    Raises UserError if the file is not the config of a UNet2DModel, or has a setting that is not supported.
    """
    unet = read_json(file)
    supported = {key: value for key, (value, _) in UNET_SETTINGS.items()}
    found = {key: unet.get(key, default) for key, (_, default) in UNET_SETTINGS.items()}
    try:
        attends = [kind == "AttnDownBlock2D" for kind in unet["down_block_types"]]
        supported |= _block_types(attends) | {"out_channels": unet["in_channels"]}
        found |= {key: unet[key] for key in ("down_block_types", "up_block_types", "out_channels")}
        nf = unet["block_out_channels"][0]
        fields = UNET_FIELDS | {
            "data.image_size": _side(unet["sample_size"], image_size),
            "data.num_channels": unet["in_channels"],
            "data.centered": not unet["center_input_sample"],
            "model.nf": nf,
            "model.num_groups": unet.get("norm_num_groups", 32),
            "model.ch_mult": _multiples(unet["block_out_channels"], nf),
            "model.num_res_blocks": unet["layers_per_block"],
            "model.attn_resolutions": _resolutions(attends, image_size),
        }
    except (LookupError, TypeError, ArithmeticError) as error:
        raise UserError(f"{file}: not the settings of a UNet2DModel ({error!r}); fetch it anew") from error
    for key, value in found.items():
        if value != supported[key]:
            raise UserError(f"{file}: {key} is {reprlib.repr(value)}; only {supported[key]!r} is supported")
    return fields


def _side(sample_size: Any, image_size: int) -> Any:
    """Returns the height and width of the network's images, or `image_size` if the network allows any size."""
    match sample_size:
        case None:
            return image_size
        case [height, width] if height == width:
            return height
    return sample_size


def _unet_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of a UNet2DModel's config.json for the network of the config."""
    model = config.model
    data = config.data
    return {
        **{key: value for key, (value, _) in UNET_SETTINGS.items()},
        **_block_types(_attends(config)),
        "block_out_channels": [model.nf * multiple for multiple in model.ch_mult],
        "center_input_sample": not data.centered,
        "dropout": model.dropout,
        "in_channels": data.num_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": model.num_groups,
        "out_channels": data.num_channels,
        "sample_size": data.image_size,
    }


def _block_types(attends: list[bool]) -> dict[str, list[str]]:
    return {
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
    }
