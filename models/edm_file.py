"""Reads networks of EDM (Karras et al. 2022, github.com/NVlabs/edm) from its .pkl files without executing code.

These pickles contain the source text of the network's modules, and EDM's own loader executes it. Here,
`models.torch_file` interprets the pickle, the source text is skipped, and the network is built from the constructor
arguments that the pickle records.
"""

import functools
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from ml_collections import ConfigDict

from core.errors import UserError
from models import Params
from models.torch_file import DAMAGE, TORCH, Dialect, Storage, expect, interpret, read_legacy, rebuild
from models.weights import Convert, fill_renamed

OBJECT = "torch_utils.persistence _reconstruct_persistent_obj"
STORAGE = "torch.storage _load_from_bytes"
MODULE_DICT = "torch.nn.modules.container ModuleDict"
DTYPE = "numpy dtype"
SCALARS = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
NAMES = frozenset({*TORCH.names, OBJECT, STORAGE, MODULE_DICT, DTYPE, *SCALARS})
OPERATIONS = frozenset(
    {"FRAME", "MEMOIZE", "STACK_GLOBAL", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "EMPTY_SET", "NEWOBJ"}
)
MOST_MODULES = 20_000
MOST_BLOCKS = 1000

# For each argument of EDM's U-Nets: our config field, and EDM's default.
COMMON = {
    "img_resolution": ("data.image_size", None),
    "in_channels": ("data.num_channels", None),
    "label_dim": ("model.label_dim", 0),
    "augment_dim": ("model.augment_dim", 0),
    "channel_mult_emb": ("model.emb_mult", 4),
    "dropout": ("model.dropout", 0.1),
}
SONG = COMMON | {
    "model_channels": ("model.nf", 128),
    "channel_mult": ("model.ch_mult", [1, 2, 2, 2]),
    "num_blocks": ("model.num_res_blocks", 4),
    "attn_resolutions": ("model.attn_resolutions", [16]),
    "embedding_type": ("model.embedding", "positional"),
    "channel_mult_noise": ("model.noise_mult", 1),
    "encoder_type": ("model.encoder", "standard"),
    "decoder_type": ("model.decoder", "standard"),
    "resample_filter": ("model.resample_filter", [1, 1]),
}
DHARIWAL = COMMON | {
    "model_channels": ("model.nf", 192),
    "channel_mult": ("model.ch_mult", [1, 2, 3, 4]),
    "num_blocks": ("model.num_res_blocks", 3),
    "attn_resolutions": ("model.attn_resolutions", [32, 16, 8]),
}
UNETS = {"SongUNet": ("songunet", SONG), "DhariwalUNet": ("adm", DHARIWAL)}
POSITIONS = ("img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim")  # the positional arguments
IGNORED = ("out_channels", "label_dropout")  # out_channels follows from the preconditioning


class Object(NamedTuple):
    """A persistent object in EDM's pickles: the name of its class, and its attributes."""

    class_name: str
    state: dict


class ModuleDict(dict):
    """torch's ModuleDict. Its items are the attributes that the pickle sets."""


def read_network(path: Path) -> Object:
    """Reads the network in a .pkl of EDM. Raises UserError if the file is damaged or has no network of EDM."""
    try:
        with path.open("rb") as file:
            value = interpret(file, _dialect(path.stat().st_size))
        network = expect(dict, value)["ema"]
        if not isinstance(network, Object) or network.class_name not in PRECONDITIONINGS:
            raise ValueError(f"the class of its network is none of {', '.join(PRECONDITIONINGS)}")
        if _unet(network).class_name not in UNETS:
            raise ValueError(f"the class of its U-Net is none of {', '.join(UNETS)}")
        return network
    except DAMAGE as error:
        reason = "its parts do not fit together" if isinstance(error, LookupError) else str(error)
        raise UserError(f"{path}: cannot be read as a network of EDM ({reason}); fetch it anew") from error


def network_fields(path: Path) -> dict[str, Any]:
    """Returns config fields, such as "model.nf", for the network of a .pkl of EDM and for EDM's sampler.

    Raises UserError as `read_network` does, and for constructor arguments that our networks do not have.
    """
    network = read_network(path)
    unet = _unet(network)
    name, arguments = UNETS[unet.class_name]
    try:
        values = unet.state["_init_args"]
        given = dict(zip(POSITIONS, values, strict=False)) | unet.state["_init_kwargs"]
        if unknown := given.keys() - arguments.keys() - set(IGNORED):
            raise ValueError(f"its U-Net has the argument {min(unknown)!r}, which is not known here")
        fields = {field: given.get(key, default) for key, (field, default) in arguments.items()}
        fields |= PRECONDITIONINGS[network.class_name](network.state)
        _check_sizes(fields)
        if given.get("label_dropout", 0) > 0:
            fields["model.null_class"] = fields["model.label_dim"]
        fields["model.learned_variance"] = given["out_channels"] == 2 * given["in_channels"]
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, LookupError) else error
        raise UserError(f"{path}: its network cannot be rebuilt ({reason})") from error
    sampling = {"sampling.sampler": "heun", "sampling.spacing": "sigma_rho", "sampling.n_steps": 18}
    return {"model.name": name} | fields | sampling


def _check_sizes(fields: Mapping[str, Any]) -> None:
    """Raises ValueError for an implausible size, because building such a network would take too long."""
    levels = expect(list, fields["model.ch_mult"])
    if not 1 <= fields["model.num_res_blocks"] * len(levels) <= MOST_BLOCKS:
        raise ValueError("it has too many blocks, or none")
    for name, value in fields.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not 0 <= number < 2**16:
                raise ValueError(f"{name} is {number}")


def load_edm(path: Path, config: ConfigDict) -> Params:
    """Reads the weights of a .pkl of EDM for the network of the config.

    Raises UserError if an array is missing, left over or has another shape, and as `read_network` does.
    """
    try:
        weights = _arrays(_unet(read_network(path)))
    except DAMAGE as error:
        raise UserError(f"{path}: the modules of its network do not fit together; fetch it anew") from error
    weights = {name: array for name, array in weights.items() if not name.endswith("resample_filter")}
    return fill_renamed(path, config, weights, lambda keys: _foreign_name(keys, config))


# The pickle


def _dialect(file_size: int) -> Dialect:
    """Returns the operations that these pickles may use.

    Tensors are stored inside the pickle, as files in the older format of torch.save.
    """
    unclaimed = file_size

    def call(name: Any, arguments: Any) -> Any:
        nonlocal unclaimed
        match name, arguments:
            case "torch_utils.persistence _reconstruct_persistent_obj", (dict(meta),):
                return Object(expect(str, meta["class_name"]), expect(dict, meta["state"]))
            case "torch.storage _load_from_bytes", (bytes(data),):
                unclaimed -= len(data)
                if unclaimed < 0:
                    raise ValueError("its storages claim more bytes than the file has")
                return expect(Storage, read_legacy(data))
            case "torch.nn.modules.container ModuleDict", ():
                return ModuleDict()
            case "numpy dtype", ("f8", *_):
                return DTYPE
            case (("numpy.core.multiarray scalar" | "numpy._core.multiarray scalar"), ("numpy dtype", bytes(data))):
                return struct.unpack("<d", data)[0]
        return rebuild(name, arguments)

    return Dialect(NAMES, OPERATIONS, call, _run_build)


def _run_build(target: Any, attributes: Any) -> Any:
    if isinstance(target, ModuleDict):
        target.update(expect(dict, attributes))
    elif target != DTYPE or expect(tuple, attributes)[1:2] != ("<",):
        raise ValueError("its pickle sets attributes of an object that has none")
    return target


def _unet(network: Object) -> Object:
    return expect(Object, expect(dict, network.state["_modules"])["model"])


def _arrays(root: Object) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns all parameters and buffers by their names in torch's state dict."""
    arrays = {}
    waiting = [("", root)]
    for _ in range(MOST_MODULES):  # a damaged file may hold a module that contains itself
        if not waiting:
            return arrays
        prefix, module = waiting.pop()
        state = module.state if isinstance(module, Object) else expect(ModuleDict, module)
        for kind in ("_parameters", "_buffers"):
            found = expect(dict, state[kind]).items()
            arrays |= {f"{prefix}{name}": array for name, array in found if isinstance(array, np.ndarray)}
        waiting += [(f"{prefix}{name}.", child) for name, child in expect(dict, state["_modules"]).items()]
    raise ValueError("it has too many modules")


# For each preconditioning class of EDM: the config fields that follow from its attributes


def _edm(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model.convention": "edm",
        "model.prediction": "edm",
        "model.sigma_data": float(state["sigma_data"]),
        "schedule.name": "edm",
        "schedule.sigma_min": max(0.002, float(state["sigma_min"])),
        "schedule.sigma_max": min(80.0, float(state["sigma_max"])),
    }


def _vp(state: Mapping[str, Any]) -> dict[str, Any]:
    beta_min = float(state["beta_min"])
    return {
        "model.convention": "vp",
        "model.prediction": "eps",
        "model.beta_min": beta_min,
        "model.beta_max": beta_min + float(state["beta_d"]),
        "model.num_scales": state["M"],
        "schedule.name": "vp",
    }


def _ve(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model.convention": "ve",
        "model.prediction": "negative_eps",
        "schedule.name": "ve",
        "schedule.sigma_min": float(state["sigma_min"]),
        "schedule.sigma_max": float(state["sigma_max"]),
    }


def _iddpm(state: Mapping[str, Any]) -> dict[str, Any]:
    if (state["C_1"], state["C_2"]) != (0.001, 0.008):
        raise ValueError(f"its constants C_1 and C_2 are {state['C_1']!r} and {state['C_2']!r}, not 0.001 and 0.008")
    return {
        "model.convention": "iddpm",
        "model.prediction": "eps",
        "model.num_scales": state["M"],
        "schedule.name": "cosine",
    }


PRECONDITIONINGS = {"EDMPrecond": _edm, "VPPrecond": _vp, "VEPrecond": _ve, "iDDPMPrecond": _iddpm}

# The names of parameters in EDM's files

OUTER = {
    "emb_dense1": "map_layer0",
    "emb_dense2": "map_layer1",
    "label_dense": "map_label",
    "augment_dense": "map_augment",
    "norm_out": "out_norm",
    "conv_out": "out_conv",
}
INNER = {
    "norm1": "norm0",
    "conv1": "conv0",
    "emb_dense": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "shortcut": "skip",
}
ATTENTION = {"norm": "norm2", "query": "qkv", "key": "qkv", "value": "qkv", "out": "proj"}


def _foreign_name(keys: tuple[str | int, ...], config: ConfigDict) -> tuple[str, Convert]:
    """Returns EDM's name of one of our parameters, and the function that converts EDM's array to our layout."""
    sizes = [config.data.image_size >> level for level in range(len(config.model.ch_mult))]
    leaf = {"kernel": "weight", "scale": "weight"}.get(keys[-1], keys[-1])
    layer = keys[-2] if len(keys) > 1 else None
    convert = _from_torch
    match keys:
        case ("frequencies",):
            return "map_noise.freqs", convert
        case ("conv_in", _):
            place = f"enc.{sizes[0]}x{sizes[0]}_conv"
        case ("down", int(level), int(index), *_):
            entry = f"block{index - (level > 0)}" if index or not level else "down"
            place = f"enc.{sizes[level]}x{sizes[level]}_{entry}"
        case ("up", int(position), int(index), *_):
            size = sizes[::-1][position]
            entries = 2 if position == 0 else 1
            names = ("in0", "in1") if position == 0 else ("up",)
            place = f"dec.{size}x{size}_" + (names[index] if index < entries else f"block{index - entries}")
        case ("pyramid", int(index), _):
            kind_of_aux = {"residual": "aux_residual", "skip": "aux_skip"}[config.model.encoder]
            place = f"enc.{sizes[index + 1]}x{sizes[index + 1]}_{kind_of_aux}"
        case ("norms_out" | "convs_out", int(index), _):
            size = sizes[::-1][index] if config.model.decoder == "skip" else sizes[0]
            place = f"dec.{size}x{size}_aux_{'norm' if keys[0] == 'norms_out' else 'conv'}"
        case (name, _):
            place = OUTER[name]
    if keys[0] in ("down", "up"):
        if "attention" in keys:
            place = f"{place}.{ATTENTION[layer]}"
            if ATTENTION[layer] == "qkv":
                convert = functools.partial(_part_of_qkv, index=("query", "key", "value").index(layer))
        else:
            place = f"{place}.{INNER[layer]}"
    return f"{place}.{leaf}", convert


def _from_torch(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Converts to our layout: [out, in, height, width] to [height, width, in, out]; 1x1 and dense to [in, out]."""
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array[0, 0] if array.shape[:2] == (1, 1) else array
    return array.T


def _part_of_qkv(array: Shaped[np.ndarray, "..."], index: int) -> Shaped[np.ndarray, "..."]:
    """Extracts query, key or value (index 0, 1 or 2) of the joint qkv layer, whose outputs are q, k, v, q, k, v, ..."""
    return _from_torch(array[index::3])
