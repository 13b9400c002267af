"""Finds and reads the files of a UNet2DModel in a folder of diffusers, and writes such folders."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from core.files import making_folder, read_json, refuse_failed_download, write_json
from models.torch_file import read_pth

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"

# Glob patterns in the order in which they are tried. The settings are in the folder itself, in the unet folder of a
# pipeline, or in a cache folder of huggingface_hub. The weights are a single file, an index of several files, or a
# variant such as fp16.
SETTINGS_FILES = ("config.json", "unet/config.json", "snapshots/*/config.json", "snapshots/*/unet/config.json")
WEIGHTS_FILES = (
    WEIGHTS,
    f"{WEIGHTS}*.json",
    f"{STEM}.bin",
    f"{STEM}.bin*.json",
    f"{STEM}*-00001-of-*",
    f"{STEM}.*.safetensors",
    f"{STEM}.*.bin",
    "*.safetensors",
    "*.bin",
)
# Matches one of several files of weights, such as diffusion_pytorch_model-00001-of-00002.safetensors.
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")

# The names of attention layers up to diffusers 0.16 (for example in google/ddpm-cifar10-32), and their current names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_LAYER = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")


def find_settings(source: Path) -> Path:
    """Returns the path of the network's config.json. `source` is a folder or pipeline of diffusers, or a file in one.

    Raises UserError if there is none, or more than one.
    """
    return _find(source if source.is_dir() else source.parent, SETTINGS_FILES, "config.json of a UNet2DModel")


def find_weights(source: Path, settings: Path) -> Path:
    """Returns the path of the network's weights: a file, an index of files, or the first of several files.

    Raises UserError if there are none, or more than one variant.
    """
    if source.is_dir() or source.name in ("config.json", "model_index.json"):
        return _find(settings.parent, WEIGHTS_FILES, WEIGHTS)
    return source


def write_folder(path: Path, files: Mapping[str, Mapping[str, Any]], weights: Mapping[str, np.ndarray]) -> None:
    """Writes a new folder with JSON files and weights, atomically. files: the contents by file name."""
    with making_folder(path) as folder:
        for name, content in files.items():
            write_json(folder / name, content)
        # The arrays must be contiguous, because safetensors writes the memory of an array and ignores its strides.
        arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})


def _find(folder: Path, patterns: Iterable[str], kind: str) -> Path:
    """Tries the patterns in order. Returns the only file that matches the first pattern with a match."""
    for pattern in patterns:
        match sorted(folder.glob(pattern)):
            case [file]:
                return file
            case [_, *_] as files:
                names = ", ".join(str(file.relative_to(folder)) for file in files)
                raise UserError(f"{folder} holds {names}; name one of them as --source")
    names = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
    raise UserError(
        f"{folder} holds no {kind}, only {reprlib.repr(names)}; give the whole folder of a diffusers network, or a "
        ".pth of the paper's code"
    )


def read_weights(file: Path) -> dict[str, Any]:
    """Reads the arrays of a file of weights and of all files that belong to it, under diffusers' current names.

    Raises UserError if a file is missing or cannot be read.
    """
    weights = {}
    for part in _parts(file):
        weights |= _read_arrays(part)
    return {OLD_LAYER.sub(lambda old: OLD_NAMES[old[0]], str(name)): array for name, array in weights.items()}


def _parts(file: Path) -> list[Path]:
    """Lists the files that the weights are split into: the files in an index, or all of a numbered sequence."""
    if file.suffix == ".json":
        names = read_json(file).get("weight_map")
        if not isinstance(names, dict) or not all(Path(str(name)).name == name for name in names.values()):
            raise UserError(f"{file}: not an index of weights: weight_map should have the file name of every tensor")
        return [file.with_name(name) for name in sorted(set(names.values()))]
    if numbered := SHARD.fullmatch(file.name):
        stem, count, suffix = numbered.groups()
        return [file.with_name(f"{stem}-{index:05}-of-{count}{suffix}") for index in range(1, int(count) + 1)]
    return [file]


def _read_arrays(file: Path) -> dict[str, Any]:
    refuse_failed_download(file)
    if file.suffix != ".safetensors":
        weights = read_pth(file)
        if not isinstance(weights, dict):
            raise UserError(f"{file}: not a dict of tensors; fetch {WEIGHTS} instead")
        return weights
    try:
        return load_file(file)
    except (OSError, SafetensorError, AttributeError, TypeError) as error:
        # AttributeError and TypeError mean that the file has a dtype that NumPy lacks.
        raise UserError(f"{file}: cannot be read as safetensors ({error}); fetch it anew") from error
