"""Reads networks of score_sde (Song et al. 2021, github.com/yang-song/score_sde) from its flax checkpoints.

A checkpoint is a tree of arrays in msgpack, without a description of its network. So config.json beside the checkpoint
must have the fields of score_sde's config, as {"model": {...}, "data": {...}, "training": {...}}.
"""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from flax import nnx
from jaxtyping import Shaped
from ml_collections import ConfigDict

from core.errors import UserError
from core.files import read_json
from models import Params, abstract_params
from models.weights import Arrays, Convert, fill_renamed

ARRAY, SCALAR = 1, 3  # the codes of flax's msgpack extensions
DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint32", "bool")

# The values of these settings that our network implements; no others are accepted.
REQUIRED = {
    "name": "ncsnpp",
    "resblock_type": "biggan",
    "attention_type": "ddpm",
    "nonlinearity": "swish",
    "skip_rescale": True,
    "conditional": True,
    "progressive_combine": "sum",
}
ENCODERS = {"none": "standard", "residual": "residual", "input_skip": "skip"}
DECODERS = {"none": "standard", "output_skip": "skip"}
SAME_FIELDS = ("nf", "num_res_blocks", "ch_mult", "attn_resolutions", "dropout", "num_scales")


def read_checkpoint(path: Path) -> tuple[int, Arrays]:
    """Returns (step, averaged weights by their paths joined by "/"). Raises UserError if the file cannot be read."""
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, strict_map_key=False)
        return int(tree["step"]), dict(_leaves(tree["params_ema"]))
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, OverflowError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as a checkpoint of score_sde ({reason}); fetch it anew") from error


def network_fields(path: Path) -> dict[str, Any]:
    """Returns the config fields of the network of a checkpoint, from the config.json beside it.

    Raises UserError if there is no config.json, or if it describes a network or a process that is not supported.
    """
    file = path.parent / "config.json"
    if not file.exists():
        raise UserError(f"{path} does not describe its network: put the fields of its config into {file}")
    stored = read_json(file)
    try:
        model, data, training = stored["model"], stored["data"], stored["training"]
        for name, value in REQUIRED.items():
            if model[name] != value:
                raise ValueError(f"model.{name} is {model[name]!r}, and only {value!r} is supported")
        return {
            "model.name": "songunet",
            **{f"model.{name}": model[name] for name in SAME_FIELDS},
            "model.encoder": ENCODERS[model["progressive_input"]],
            "model.decoder": DECODERS[model["progressive"]],
            "model.resample_filter": model["fir_kernel"] if model["fir"] else [1, 1],
            "model.embedding": model["embedding_type"],
            "model.noise_mult": 2 if model["embedding_type"] == "fourier" else 1,
            "data.image_size": data["image_size"],
            "data.num_channels": data["num_channels"],
            "data.centered": data["centered"],
            **PROCESSES[training["sde"], training["continuous"]](model),
        }
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"it lacks or has an unknown {error}" if isinstance(error, LookupError) else error
        raise UserError(f"{file}: its network cannot be rebuilt ({reason})") from error


def load_score_sde(path: Path, config: ConfigDict) -> tuple[int, Params]:
    """Reads (step, averaged weights) of a checkpoint, for the network of the config.

    Raises UserError as `read_checkpoint` and `fill_renamed` do.
    """
    step, arrays = read_checkpoint(path)
    network = nnx.merge(*abstract_params(config))
    blocks = [
        ((side, level, index), block)
        for side in ("down", "up")
        for level, stage in enumerate(getattr(network, side))
        for index, block in enumerate(stage)
    ]
    attending = [place for place, block in blocks if block.attention is not None]
    places = {place: f"ResnetBlockBigGANpp_{k}" for k, (place, _) in enumerate(blocks)}
    attention = {place: f"AttnBlockpp_{k}" for k, place in enumerate(attending)}
    pyramid = PYRAMIDS[config.model.encoder]

    def foreign(keys: tuple[str | int, ...]) -> tuple[str, Convert]:
        return _foreign_name(keys, places, attention, pyramid), _to_ours

    return step, fill_renamed(path, config, arrays, foreign)


def _array(code: int, data: bytes) -> Shaped[np.ndarray, "..."]:
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"an extension of type {code}")
    shape, dtype, content = msgpack.unpackb(data)
    name = dtype.decode() if isinstance(dtype, bytes) else dtype
    if name not in DTYPES:
        raise ValueError(f"an array of {str(name)[:20]}")
    return np.frombuffer(content, name).reshape(shape)


def _leaves(tree: dict, prefix: str = "") -> Any:
    for name, child in tree.items():
        if isinstance(child, dict):
            yield from _leaves(child, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", child


# For each diffusion process of score_sde: the corresponding config fields


def _vp(model: dict) -> dict[str, Any]:
    return _betas(model) | {"model.convention": "vp", "schedule.name": "vp"}


def _discrete_vp(model: dict) -> dict[str, Any]:
    return _betas(model) | {"model.convention": "ddpm", "schedule.name": "linear"}


def _betas(model: dict) -> dict[str, Any]:
    return {"model.beta_min": float(model["beta_min"]), "model.beta_max": float(model["beta_max"])}


def _ve(model: dict) -> dict[str, Any]:
    if model["embedding_type"] != "fourier":
        raise ValueError("a continuous vesde with another model.embedding_type than 'fourier'")
    return _sigmas(model) | {"model.convention": "sigma", "model.log_time": True}


def _discrete_ve(model: dict) -> dict[str, Any]:
    if model["embedding_type"] != "positional":
        raise ValueError("a discrete vesde with another model.embedding_type than 'positional'")
    return _sigmas(model) | {"model.convention": "ve_index"}


def _sigmas(model: dict) -> dict[str, Any]:
    return {
        "model.prediction": "score",
        "model.divides_by_sigma": model["scale_by_sigma"],
        "schedule.name": "ve",
        "schedule.sigma_min": float(model["sigma_min"]),
        "schedule.sigma_max": float(model["sigma_max"]),
    }


def _subvp(model: dict) -> dict[str, Any]:
    raise ValueError("subvpsde: the variance of its noise, (1 - alpha_bar)^2, lies on no variance-preserving path")


PROCESSES = {
    ("vpsde", True): _vp,
    ("vpsde", False): _discrete_vp,
    ("vesde", True): _ve,
    ("vesde", False): _discrete_ve,
    ("subvpsde", True): _subvp,
    ("subvpsde", False): _subvp,
}

# The names of parameters in checkpoints: flax numbers the modules of each class in the order of their creation

OUTER = {"emb_dense1": "Dense_0", "emb_dense2": "Dense_1", "conv_in": "Conv_0"}
INNER = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "emb_dense": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
}
ATTENTION = {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"}


PYRAMIDS = {
    "standard": "",
    "residual": "Downsample_{index}/Conv2d_0/{leaf}",
    "skip": "Combine_{index}/Conv_0/{leaf}",
}


def _foreign_name(keys: tuple, places: dict[tuple, str], attention: dict[tuple, str], pyramid: str) -> str:
    """Returns score_sde's name of one of our parameters.

    places, attention, pyramid: score_sde's names of the residual blocks, attention blocks and pyramid layers.
    """
    match keys:
        case ("frequencies",):
            return "GaussianFourierProjection_0/W"
        case ("norms_out", int(index), leaf):
            return f"GroupNorm_{index}/{leaf}"
        case ("convs_out", int(index), leaf):
            return f"Conv_{index + 1}/{leaf}"
        case ("down" | "up", _, _, "attention", layer, leaf):
            leaf = leaf if layer == "norm" else {"kernel": "W", "bias": "b"}[leaf]
            return f"{attention[keys[:3]]}/{ATTENTION[layer]}/{leaf}"
        case ("down" | "up", _, _, layer, leaf):
            return f"{places[keys[:3]]}/{INNER[layer]}/{leaf}"
        case ("pyramid", int(index), leaf):
            leaf = "weight" if leaf == "kernel" and "Conv2d" in pyramid else leaf
            return pyramid.format(index=index, leaf=leaf)
    return f"{OUTER[keys[0]]}/{keys[1]}"


def _to_ours(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Converts an array to our layout, in which 1x1 convolutions are dense layers."""
    return array[0, 0] if array.ndim == 4 and array.shape[:2] == (1, 1) else array
