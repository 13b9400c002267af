"""Reads a folder of diffusers: the place of its UNet2DModel, its weights, and what its noise scheduler says."""

import math
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from core.errors import UserError, warn
from core.files import read_json, refuse_failed_download
from models.torch_file import read_pth

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
SCHEDULER = "scheduler_config.json"

# Glob patterns, the preferred first. The settings lie in the folder itself, in that of a pipeline, or in a folder of
# the cache of huggingface_hub. The weights are one file, an index of several, or a variant such as fp16.
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
# From the folder of the network to that of the scheduler: the same, its neighbour in a pipeline, or its neighbour
# beside the folder of a training checkpoint (checkpoint-500/unet_ema).
SCHEDULER_PLACES = (".", "scheduler", "..", "../scheduler", "../../scheduler")

# One of several files of weights, such as diffusion_pytorch_model-00001-of-00002.safetensors.
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")

# Names of the attention layers in diffusers up to version 0.16, for example in google/ddpm-cifar10-32.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_LAYER = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")

# Schedulers of diffusers for a network on discrete times, whose default betas are linear from 1e-4 to 0.02.
SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "RePaintScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler", "SASolverScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
)
# diffusers' names of config.model.prediction and config.schedule.name. "table" stands for trained_betas.
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "table": "linear"}
# Settings that have no meaning with a schedule.
UNUSED = {"cosine": ("beta_start", "beta_end"), "table": ("beta_start", "beta_end", "beta_schedule")}

# Settings of a scheduler that determine what the network means, with diffusers' values where they are missing.
DEFAULTS = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
}
# The fields of the config that determine them here. For the others, only the default is supported.
FIELDS = {
    "prediction_type": "model.prediction",
    "num_train_timesteps": "model.num_scales",
    "beta_start": "model.beta_min / num_scales",
    "beta_end": "model.beta_max / num_scales",
    "beta_schedule": "schedule.name",
    "trained_betas": "schedule.alpha_bars",
    "rescale_betas_zero_snr": "schedule.zero_snr",
}


def find_settings(source: Path) -> Path:
    """The config.json of the network at `source`: a folder or pipeline of diffusers, or a file in one.

    Raises UserError if there is none, or more than one.
    """
    return _find(source if source.is_dir() else source.parent, SETTINGS_FILES, "config.json of a UNet2DModel")


def find_weights(source: Path, settings: Path) -> Path:
    """The weights of the network at `source` with these settings: a file, an index of files, or the first of several.

    Raises UserError if there are none, or more than one variant.
    """
    if source.is_dir() or source.name in ("config.json", "model_index.json"):
        return _find(settings.parent, WEIGHTS_FILES, WEIGHTS)
    return source


def _find(folder: Path, patterns: Iterable[str], kind: str) -> Path:
    """The file that matches the first pattern with a match."""
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
    """The arrays of a file of weights, or of all that belong to it, by their current names.

    Raises UserError if a file is missing or cannot be read.
    """
    weights = {}
    for part in _parts(file):
        weights |= _read_arrays(part)
    return {OLD_LAYER.sub(lambda old: OLD_NAMES[old[0]], str(name)): array for name, array in weights.items()}


def _parts(file: Path) -> list[Path]:
    """The files over which the weights are distributed: those of an index, or all of a numbered sequence."""
    if file.suffix == ".json":
        names = read_json(file).get("weight_map")
        if not isinstance(names, dict) or not all(Path(str(name)).name == name for name in names.values()):
            raise UserError(f"{file}: not an index of weights: its weight_map should name the file of every tensor")
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
    except (OSError, SafetensorError, AttributeError, TypeError) as error:  # the last two: a dtype that numpy lacks
        raise UserError(f"{file}: cannot be read as safetensors ({error}); fetch it anew") from error


def scheduler_settings(config: ConfigDict) -> dict[str, Any]:
    """The content of scheduler_config.json for the network of the config.

    Raises UserError for a prediction or a noise schedule that diffusers lacks.
    """
    model, schedule = config.model, config.schedule
    _require_counterpart("model.prediction", model.prediction, PREDICTIONS)
    _require_counterpart("schedule.name", schedule.name, SCHEDULES)
    betas = 1 - np.array(schedule.alpha_bars) / np.append(1, schedule.alpha_bars[:-1])
    return {
        "_class_name": "DDPMScheduler",
        "prediction_type": PREDICTIONS[model.prediction],
        "num_train_timesteps": model.num_scales,
        "beta_start": model.beta_min / model.num_scales,
        "beta_end": model.beta_max / model.num_scales,
        "beta_schedule": SCHEDULES[schedule.name],
        "trained_betas": betas.tolist() if schedule.name == "table" else None,
        "rescale_betas_zero_snr": schedule.zero_snr,
        "clip_sample": config.sampling.clip_x0,
    }


def _require_counterpart(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(
            f"config.{field}={value!r} has no counterpart in diffusers' schedulers; {', '.join(known)} have"
        )


def check_schedulers(folder: Path, config: ConfigDict) -> None:
    """Checks that the schedulers of the network in `folder` agree with the config.

    Without a scheduler the network is taken to predict eps, on the schedule of the config. Warns about settings of the
    sampler that differ from config.sampling.

    Raises UserError if a scheduler has another prediction or noise schedule; the message names what differs.
    """
    files = [folder / place / SCHEDULER for place in SCHEDULER_PLACES if (folder / place / SCHEDULER).exists()]
    for file in files:
        _check_scheduler(file, read_json(file), config)
    if not files and config.model.prediction != "eps":
        raise UserError(
            f"{folder} has no {SCHEDULER} that says what its network predicts; put it there, or give a config with "
            "model.prediction=eps"
        )


def _check_scheduler(file: Path, scheduler: dict[str, Any], config: ConfigDict) -> None:
    name = scheduler.get("_class_name", "DDPMScheduler")
    if name not in SCHEDULERS:
        raise UserError(f"{file}: _class_name is {str(name)[:60]!r}; supported are {', '.join(SCHEDULERS)}")
    expected = DEFAULTS | scheduler_settings(config)
    found = DEFAULTS | scheduler
    keys = [key for key in DEFAULTS if key not in UNUSED.get(config.schedule.name, ())]
    wrong = [_difference(key, found[key], expected[key]) for key in keys if not _agree(found[key], expected[key])]
    if wrong:
        raise UserError(f"{file}: {'; '.join(wrong)}; the network must be used on the schedule of its training")
    _warn_of_sampler(file, scheduler, config)


def _difference(key: str, found: Any, expected: Any) -> str:
    required = f"only {expected!r} is supported"
    if key in FIELDS:
        required = f"but {reprlib.repr(expected)} by config.{FIELDS[key]}"
    return f"{key} is {reprlib.repr(found)}, {required}"


def _agree(found: Any, expected: Any) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_agree, found, expected))
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-6)
    return found == expected


def _warn_of_sampler(file: Path, scheduler: dict[str, Any], config: ConfigDict) -> None:
    """Warns about settings that change only the sampling, which follows config.sampling here."""
    spacing = scheduler.get("timestep_spacing", "leading")
    if scheduler.get("clip_sample", config.sampling.clip_x0) != config.sampling.clip_x0:
        warn(f"{file}: clip_sample is {scheduler['clip_sample']}, but config.sampling.clip_x0 decides here")
    if spacing == "trailing" != config.sampling.spacing:
        warn(f"{file}: timestep_spacing is {spacing}, but config.sampling.spacing decides here")
