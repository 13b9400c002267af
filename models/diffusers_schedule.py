"""Converts between schedulers of diffusers and config fields, and checks whether they agree."""

import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError, warn
from core.files import read_json
from core.schedules import NoiseSchedule

SCHEDULER = "scheduler_config.json"
# Paths from the network's folder to folders that may have the scheduler.
SCHEDULER_PLACES = (
    ".",
    "scheduler",
    "..",
    "../scheduler",  # in a pipeline, the network is in its folder `unet`
    "../../scheduler",  # in training output, the network is in a folder such as `checkpoint-500/unet_ema`
)

# The supported schedulers for networks with discrete times. Their default betas are linear from 1e-4 to 0.02.
SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "RePaintScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler", "SASolverScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
)
# config.model.prediction and config.schedule.name: their names in diffusers.
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "sigmoid": "sigmoid", "cosine": "squaredcos_cap_v2"}
TABLE = "table"  # the config.schedule.name for trained_betas of diffusers, with which beta_schedule has no effect
# Settings of a scheduler that have no effect with a schedule.
UNUSED = {"cosine": ("beta_start", "beta_end"), TABLE: ("beta_start", "beta_end", "beta_schedule")}
MOST_TIMES = 100_000  # limit of num_train_timesteps; a damaged file could ask for more times than fit into memory

# Settings of a scheduler that a network depends on, and the values that diffusers uses where a setting is missing.
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
# The config fields that correspond to these settings. Of the other settings, only the default is supported.
FIELDS = {
    "prediction_type": "model.prediction",
    "num_train_timesteps": "model.num_scales",
    "beta_start": "model.beta_min / num_scales",
    "beta_end": "model.beta_max / num_scales",
    "beta_schedule": "schedule.name",
    "trained_betas": "schedule.alpha_bars",
    "rescale_betas_zero_snr": "schedule.zero_snr",
}


def schedule_fields(folder: Path) -> dict[str, Any]:
    """Returns the config fields that the schedulers of the network in `folder` determine.

    If there is no scheduler, the fields are those of diffusers' default scheduler, and a warning is printed.

    Raises UserError if a scheduler is not supported, or if two schedulers differ.
    """
    files = _schedulers(folder)
    if not files:
        warn(f"{folder} has no {SCHEDULER}: it is assumed that the network predicts eps on diffusers' default schedule")
        return _discrete_fields({})
    found = [_fields_of(file) for file in files]
    if any(fields != found[0] for fields in found):
        raise UserError(f"{', '.join(map(str, files))} differ; remove the files that do not belong to the network")
    return found[0]


def _fields_of(file: Path) -> dict[str, Any]:
    scheduler = read_json(file)
    name = scheduler.get("_class_name", "DDPMScheduler")
    try:
        if name not in KINDS:
            raise ValueError(f"_class_name is {str(name)[:60]!r}; supported are {', '.join(KINDS)}")
        count = scheduler.get("num_train_timesteps", DEFAULTS["num_train_timesteps"])
        if not isinstance(count, int) or not 2 <= count <= MOST_TIMES:
            raise ValueError(f"num_train_timesteps is {reprlib.repr(count)}, not from 2 to {MOST_TIMES}")
        return {"model.num_scales": count} | KINDS[name](scheduler)
    except (ValueError, LookupError, TypeError) as error:
        reason = f"it lacks or has an unknown {error}" if isinstance(error, LookupError) else error
        raise UserError(f"{file}: {reason}") from error


def _discrete_fields(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The config fields of a scheduler with discrete times on the variance-preserving path."""
    given = DEFAULTS | scheduler
    for key in ("timestep_type", "use_flow_sigmas"):
        if given[key] != DEFAULTS[key]:
            raise ValueError(f"{key} is {reprlib.repr(given[key])}, only {DEFAULTS[key]!r} is supported")
    return {
        "model.prediction": _ours(PREDICTIONS, given["prediction_type"]),
        "schedule.zero_snr": given["rescale_betas_zero_snr"],
        **(_trained(given) if given["trained_betas"] is not None else _named(given)),
        **_sampling_fields(scheduler),
    }


def _named(given: dict[str, Any]) -> dict[str, Any]:
    count = given["num_train_timesteps"]
    return {
        "model.beta_min": _number(given, "beta_start") * count,
        "model.beta_max": _number(given, "beta_end") * count,
        "schedule.name": _ours(SCHEDULES, given["beta_schedule"]),
        "schedule.single_precision": True,
    }


def _trained(given: dict[str, Any]) -> dict[str, Any]:
    betas = np.array(given["trained_betas"], np.float32)
    if betas.shape != (given["num_train_timesteps"],) or not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"trained_betas are not {given['num_train_timesteps']} numbers between 0 and 1")
    table = NoiseSchedule.in_single_precision(betas).alpha_bars
    return {"schedule.name": TABLE, "schedule.alpha_bars": tuple(table.tolist())}


def _sampling_fields(scheduler: dict[str, Any]) -> dict[str, Any]:
    trailing = scheduler.get("timestep_spacing") == "trailing"
    fields = {"sampling.clip_x0": scheduler.get("clip_sample", False)}
    return fields | ({"sampling.spacing": "trailing"} if trailing else {})


def _ve_fields(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The config fields of ScoreSdeVeScheduler (Song et al. 2021): the network receives sigma and returns the score."""
    return {
        "model.prediction": "score",
        "model.convention": "sigma",
        "schedule.name": "ve",
        "schedule.sigma_min": _number(scheduler, "sigma_min", 0.01),
        "schedule.sigma_max": _number(scheduler, "sigma_max", 1348.0),
    }


def _edm_fields(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The config fields of EDMEulerScheduler and EDMDPMSolverMultistepScheduler (Karras et al. 2022)."""
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction != "epsilon":  # "epsilon" is diffusers' name of EDM's F
        raise ValueError(f"prediction_type is {reprlib.repr(prediction)}, only 'epsilon' is supported")
    return {
        "model.prediction": "edm",
        "model.convention": "edm",
        "model.sigma_data": _number(scheduler, "sigma_data", 0.5),
        "schedule.name": "edm",
        "schedule.sigma_min": _number(scheduler, "sigma_min", 0.002),
        "schedule.sigma_max": _number(scheduler, "sigma_max", 80.0),
        "sampling.spacing": "sigma_rho",
    }


def _flow_fields(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The config fields of the flow-matching schedulers. Their shift changes only the times of sampling."""
    return {"model.prediction": "flow", "model.convention": "flow", "schedule.name": "flow"}


def _number(given: dict[str, Any], key: str, default: float = 0.0) -> float:
    value = given.get(key, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{key} is {reprlib.repr(value)}, not a number")
    return float(value)


def _ours(names: dict[str, str], theirs: Any) -> str:
    """Returns our name for diffusers' name `theirs`. Raises ValueError if there is none."""
    if theirs not in names.values():
        raise ValueError(f"{reprlib.repr(theirs)} is not supported, only {', '.join(names.values())}")
    return next(ours for ours, name in names.items() if name == theirs)


KINDS = {
    **dict.fromkeys(SCHEDULERS, _discrete_fields),
    "ScoreSdeVeScheduler": _ve_fields,
    "EDMEulerScheduler": _edm_fields,
    "EDMDPMSolverMultistepScheduler": _edm_fields,
    "FlowMatchEulerDiscreteScheduler": _flow_fields,
    "FlowMatchHeunDiscreteScheduler": _flow_fields,
}


def scheduler_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of scheduler_config.json for the network of the config.

    Raises UserError if diffusers has no scheduler for it.
    """
    model = config.model
    schedule = config.schedule
    match model.convention, schedule.name:
        case "ddpm", name if name in (*SCHEDULES, TABLE) and model.prediction in PREDICTIONS:
            own = {
                "_class_name": "DDPMScheduler",
                "prediction_type": PREDICTIONS[model.prediction],
                "beta_start": model.beta_min / model.num_scales,
                "beta_end": model.beta_max / model.num_scales,
                "beta_schedule": SCHEDULES.get(name, DEFAULTS["beta_schedule"]),
                "trained_betas": _betas(schedule.alpha_bars) if name == TABLE else None,
                "rescale_betas_zero_snr": schedule.zero_snr,
                "clip_sample": config.sampling.clip_x0,
            }
        case "sigma", "ve":
            own = {"_class_name": "ScoreSdeVeScheduler", **_range(schedule)}
        case "edm", "edm":
            own = {"_class_name": "EDMEulerScheduler", "sigma_data": model.sigma_data, **_range(schedule)}
        case "flow", "flow":
            own = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
        case _:
            raise UserError(
                f"diffusers has no scheduler for schedule.name={schedule.name} with model.convention="
                f"{model.convention} and model.prediction={model.prediction}; use an .npz of this project instead"
            )
    return {"num_train_timesteps": model.num_scales} | own


def _betas(alpha_bars: Sequence[float]) -> list[float]:
    return (1 - np.array(alpha_bars) / np.append(1, alpha_bars[:-1])).tolist()


def _range(schedule: ConfigDict) -> dict[str, float]:
    return {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}


def check_schedulers(folder: Path, config: ConfigDict) -> None:
    """Checks that all schedulers found for the network in `folder` agree with the config.

    If there is no scheduler, the network is assumed to predict eps, on the noise schedule of the config. Warns about
    settings of the sampler that differ from config.sampling.

    Raises UserError if the prediction type or the noise schedule differs; the message names the settings that differ.
    """
    files = _schedulers(folder)
    for file in files:
        _check_scheduler(file, read_json(file), config)
    if not files and config.model.prediction != "eps":
        raise UserError(
            f"{folder} has no {SCHEDULER} that says what its network predicts; put it there, or give a config with "
            "model.prediction=eps"
        )


def _schedulers(folder: Path) -> list[Path]:
    return [folder / place / SCHEDULER for place in SCHEDULER_PLACES if (folder / place / SCHEDULER).exists()]


def _check_scheduler(file: Path, scheduler: dict[str, Any], config: ConfigDict) -> None:
    name = scheduler.get("_class_name", "DDPMScheduler")
    if name not in SCHEDULERS:
        raise UserError(f"{file}: _class_name is {str(name)[:60]!r}; supported are {', '.join(SCHEDULERS)}")
    expected = DEFAULTS | scheduler_settings(config)
    found = DEFAULTS | scheduler
    keys = [key for key in DEFAULTS if key not in UNUSED.get(config.schedule.name, ())]
    wrong = [_difference(key, found[key], expected[key]) for key in keys if not _agree(found[key], expected[key])]
    if wrong:
        raise UserError(f"{file}: {'; '.join(wrong)}; a network needs the noise schedule that it was trained with")
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
    """Warns about settings that affect only sampling. They are ignored, because config.sampling replaces them."""
    spacing = scheduler.get("timestep_spacing", "leading")
    if scheduler.get("clip_sample", config.sampling.clip_x0) != config.sampling.clip_x0:
        warn(f"{file}: clip_sample is {scheduler['clip_sample']}, but config.sampling.clip_x0 decides here")
    if spacing == "trailing" != config.sampling.spacing:
        warn(f"{file}: timestep_spacing is {spacing}, but config.sampling.spacing decides here")
