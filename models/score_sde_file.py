"""Reads networks of score_sde (Song et al. 2021, github.com/yang-song/score_sde) and of its PyTorch port.

A flax checkpoint is a tree of arrays in msgpack. A checkpoint of the port is a .pth. Neither has a description of its
network. So config.json beside the checkpoint must have the fields of score_sde's config, as
{"model": {...}, "data": {...}, "training": {...}}.
"""

from collections import Counter
from collections.abc import Iterator
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
from models.layers import Downsample, Upsample
from models.songunet import SongUNet
from models.torch_file import read_pth
from models.torch_names import CONV, CONV1X1, DENSE, SAME
from models.weights import Arrays, Convert, fill_renamed

ARRAY, SCALAR = 1, 3  # the codes of flax's msgpack extensions
DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint32", "bool")

# For each network of score_sde, the settings that our network has only with these values. Other values are rejected.
REQUIRED = {
    "ncsnpp": {
        "resblock_type": "biggan",
        "attention_type": "ddpm",
        "nonlinearity": "swish",
        "skip_rescale": True,
        "conditional": True,
        "progressive_combine": "sum",
    },
    "ddpm": {"nonlinearity": "swish", "conditional": True, "resamp_with_conv": True},
}
ENCODERS = {"none": "standard", "residual": "residual", "input_skip": "skip"}
DECODERS = {"none": "standard", "output_skip": "skip"}
SAME_FIELDS = ("nf", "num_res_blocks", "ch_mult", "attn_resolutions", "dropout", "num_scales")


def read_port(path: Path) -> tuple[int, Arrays]:
    """Reads a .pth of the PyTorch port. Returns the step, and a dict of the averaged weights.

    The keys of the dict are the names of the weights in torch's state dict. The file has the averages as a list in the
    order of the weights. The list lacks the frequencies, which are not trained.

    Raises UserError if the file is damaged or is not a checkpoint of the port.
    """
    match read_pth(path):
        case {"model": dict(named), "ema": {"shadow_params": list(averages)}, "step": (int() | np.ndarray()) as step}:
            weights = {str(name).removeprefix("module."): array for name, array in named.items()}
        case _:
            raise UserError(f"{path}: not a checkpoint of score_sde's PyTorch port: it lacks model, step or ema")
    weights.pop("sigmas", None)
    frequencies = weights.pop(FREQUENCIES, None)
    if len(averages) != len(weights) or np.size(step) != 1:
        raise UserError(f"{path}: its EMA has {len(averages)} tensors, its network {len(weights)}; fetch the file anew")
    averaged = dict(zip(weights, averages, strict=True))
    return int(np.asarray(step).item()), averaged | ({} if frequencies is None else {FREQUENCIES: frequencies})


def read_checkpoint(path: Path) -> tuple[int, Arrays]:
    """Reads a flax checkpoint. Returns the step, and a dict from the path of each averaged weight to its array.

    A path has the form "a/b/c". Raises UserError if the file cannot be read.
    """
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
        for name, value in REQUIRED[model["name"]].items():
            if model[name] != value:
                raise ValueError(f"model.{name} is {model[name]!r}, and only {value!r} is supported")
        return {
            "model.name": "songunet",
            **{f"model.{name}": model[name] for name in SAME_FIELDS},
            **(_ncsnpp(model) if model["name"] == "ncsnpp" else DDPM_FIELDS),
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

    Raises UserError as `read_checkpoint`, `read_port` and `fill_renamed` do.
    """
    ported = path.suffix == ".pth"
    step, arrays = (read_port if ported else read_checkpoint)(path)
    if not 0 <= step < 2**31:
        raise UserError(f"{path}: its step {step} is not from 0 to 2^31; fetch the file anew")
    network = nnx.merge(*abstract_params(config))
    layers = dict(_ported_names(network) if ported else _flax_names(network))

    def foreign(keys: tuple[str | int, ...]) -> tuple[str, Convert]:
        *place, leaf = keys
        return (_ported_leaf if ported else _flax_leaf)(layers[tuple(place)], str(leaf))

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


# For each network of score_sde: the corresponding config fields

DDPM_FIELDS = {"model.resamp_in_blocks": False, "model.skip_rescale": False, "model.group_channels": 1}


def _ncsnpp(model: dict) -> dict[str, Any]:
    return {
        "model.encoder": ENCODERS[model["progressive_input"]],
        "model.decoder": DECODERS[model["progressive"]],
        "model.resample_filter": model["fir_kernel"] if model["fir"] else [1, 1],
        "model.embedding": model["embedding_type"],
        "model.noise_mult": 2 if model["embedding_type"] == "fourier" else 1,
    }


# For each diffusion process of score_sde: the corresponding config fields


def _vp(model: dict) -> dict[str, Any]:
    return _betas(model) | {"model.convention": "vp", "schedule.name": "vp"}


def _discrete_vp(model: dict) -> dict[str, Any]:
    return _betas(model) | {"model.convention": "ddpm", "schedule.name": "linear"}


def _betas(model: dict) -> dict[str, Any]:
    return {"model.beta_min": float(model["beta_min"]), "model.beta_max": float(model["beta_max"])}


def _ve(model: dict) -> dict[str, Any]:
    if model.get("embedding_type") != "fourier":
        raise ValueError("a continuous vesde with another model.embedding_type than 'fourier'")
    return _sigmas(model) | {"model.convention": "sigma", "model.log_time": True}


def _discrete_ve(model: dict) -> dict[str, Any]:
    if model.get("embedding_type", "positional") != "positional":
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

# The names of parameters in checkpoints: flax numbers the modules of each class in the order of their creation, and the
# port numbers all modules in this order

Place = tuple[str | int, ...]
"""The path of a layer in our network. The frequencies belong to no layer, and have the path (), the network itself."""

INNER = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "emb_dense": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
ATTENTION = {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"}
CLASSES = {"block": "ResnetBlockBigGANpp", "attention": "AttnBlockpp"}
DDPM_CLASSES = {"block": "ResnetBlockDDPM", "attention": "AttnBlock"}
FREQUENCIES = "all_modules.0.W"


def _flax_names(network: SongUNet) -> Iterator[tuple[Place, str]]:
    """Yields pairs of a layer's place in our network and its name in a flax checkpoint."""
    seen = Counter()
    for kind, layers in _modules(network):
        for place, inner in layers.items():
            yield place, "/".join(filter(None, [f"{kind}_{seen[kind]}", inner]))
        seen[kind] += 1


def _ported_names(network: SongUNet) -> Iterator[tuple[Place, str]]:
    """Yields pairs of a layer's place in our network and its name in a checkpoint of the PyTorch port."""
    for index, (_, layers) in enumerate(_modules(network)):
        for place, inner in layers.items():
            yield place, ".".join(filter(None, [f"all_modules.{index}", inner]))


def _modules(network: SongUNet) -> Iterator[tuple[str, dict[Place, str]]]:
    """Yields score_sde's modules in the order of their creation: the class, and the name of the layer at each place."""
    if hasattr(network, "frequencies"):
        yield "GaussianFourierProjection", {(): ""}
    for kind, layer in (("Dense", "emb_dense1"), ("Dense", "emb_dense2"), ("Conv", "conv_in")):
        yield kind, {(layer,): ""}
    for level, blocks in enumerate(network.down):
        for index, block in enumerate(blocks):
            yield from _modules_of_block(network, ("down", level, index), block)
            if level and index == 0 and network.pyramid:
                kind, inner = PYRAMIDS[network.encoder]
                yield kind, {("pyramid", level - 1): inner}
    for level, blocks in enumerate(network.up):
        for index, block in enumerate(blocks):
            yield from _modules_of_block(network, ("up", level, index), block)
        if (end := level - len(network.up) + len(network.convs_out)) >= 0:
            yield "GroupNorm", {("norms_out", end): ""}
            yield "Conv", {("convs_out", end): ""}


def _modules_of_block(network: SongUNet, place: Place, block: nnx.Module) -> Iterator[tuple[str, dict[Place, str]]]:
    if isinstance(block, Downsample | Upsample):
        yield type(block).__name__, {(*place, "conv"): "Conv_0"}
        return
    classes = CLASSES if network.resamp_in_blocks else DDPM_CLASSES
    inner = INNER | {"shortcut": "Conv_2" if network.resamp_in_blocks else "NIN_0"}
    yield classes["block"], {(*place, layer): name for layer, name in inner.items()}
    if block.attention is not None:
        yield classes["attention"], {(*place, "attention", layer): name for layer, name in ATTENTION.items()}


PYRAMIDS = {"residual": ("Downsample", "Conv2d_0"), "skip": ("Combine", "Conv_0")}


def _flax_leaf(layer: str, leaf: str) -> tuple[str, Convert]:
    """Returns the name of a parameter in flax, and the function that converts it to our layout.

    In our layout, 1x1 convolutions are dense layers.
    """
    if leaf == "frequencies":
        return f"{layer}/W", SAME.load
    if "NIN_" in layer:
        return f"{layer}/{NIN[leaf]}", SAME.load
    name = "weight" if leaf == "kernel" and "Conv2d" in layer else leaf
    return f"{layer}/{name}", lambda array: array[0, 0] if array.shape[:2] == (1, 1) else array


def _ported_leaf(layer: str, leaf: str) -> tuple[str, Convert]:
    """Returns the name of a parameter in the PyTorch port, and the function that converts it to our layout."""
    if leaf == "frequencies":
        return f"{layer}.W", SAME.load
    if "NIN_" in layer:
        return f"{layer}.{NIN[leaf]}", SAME.load
    return f"{layer}.{'bias' if leaf == 'bias' else 'weight'}", _from_torch


NIN = {"kernel": "W", "bias": "b"}


def _from_torch(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    if array.ndim == 4:
        return (CONV1X1 if array.shape[2:] == (1, 1) else CONV).load(array)
    return (DENSE if array.ndim == 2 else SAME).load(array)
