"""The start file: a late start for programs that have neither JAX nor this project. docs/start_file.md specifies it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import save as serialized

import sampling
from core.diffusion import NoiseSchedule
from core.errors import UserError
from core.files import replacing
from sampling.late_start import DataMixture

FORMAT = "gaussian late start"
VERSION = 1
ARRAYS = ("mean", "eigenvectors", "weights", "means", "rotations", "variances", "residual_variances")  # of DataMixture

GRID = {
    "timestep_spacing": "linspace",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
ENDING = {"final_sigmas_type": "zero"}
MULTISTEP = {**GRID, **ENDING, "lower_order_final": True, "thresholding": False}
DPM = {**MULTISTEP, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False}
UNIPC = {**MULTISTEP, "solver_type": "bh2", "predict_x0": True}
VARIANCE_PRESERVING = {"state": "x", "latents": "x"}
VARIANCE_EXPLODING = {"state": "x / signal", "latents": "x / (signal * init_noise_sigma)"}


def _scheduler(class_name: str | None, sampler: str, options: dict[str, Any], scale: dict[str, str]) -> dict[str, Any]:
    return {"class": class_name, "sampler": sampler, "options": options, **scale}


# Ways to take the steps of our samplers without this project: the class of a scheduler of diffusers, or None for the
# DDIM loop of examples/diffusers_start.py. Entries with equal `sampler` give equal images.
SCHEDULERS = {
    "ddim": _scheduler(None, "ddim", {}, VARIANCE_PRESERVING),
    "dpmpp_1": _scheduler("DPMSolverMultistepScheduler", "ddim", {**DPM, "solver_order": 1}, VARIANCE_PRESERVING),
    "euler": _scheduler(
        "EulerDiscreteScheduler",
        "ddim",
        {**GRID, **ENDING, "interpolation_type": "linear", "timestep_type": "discrete"},
        VARIANCE_EXPLODING,
    ),
    "dpmpp_2m": _scheduler("DPMSolverMultistepScheduler", "dpmpp_2m", {**DPM, "solver_order": 2}, VARIANCE_PRESERVING),
    "dpmpp_3m": _scheduler("DPMSolverMultistepScheduler", "dpmpp_3m", {**DPM, "solver_order": 3}, VARIANCE_PRESERVING),
    "unipc_2": _scheduler("UniPCMultistepScheduler", "unipc_2", {**UNIPC, "solver_order": 2}, VARIANCE_PRESERVING),
    "unipc_3": _scheduler("UniPCMultistepScheduler", "unipc_3", {**UNIPC, "solver_order": 3}, VARIANCE_PRESERVING),
    "heun": _scheduler("HeunDiscreteScheduler", "heun", {**GRID, "clip_sample": False}, VARIANCE_EXPLODING),
}
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}  # config.model.prediction: its name in diffusers


def require_followed(sampler: str, prediction: str) -> None:
    """Raises UserError if the schedulers of diffusers cannot take the sampler's steps from a late start.

    Also raises it if they do not support the quantity `prediction` (config.model.prediction).
    """
    if prediction not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise UserError(f"--what=start is for networks that predict {known}, not model.prediction={prediction}")
    if sampler not in SCHEDULERS:
        names = dict.fromkeys(row["sampler"] for row in SCHEDULERS.values())
        raise UserError(f"no scheduler of diffusers follows --sampler={sampler}; choose from {', '.join(names)}")


def save(
    path: Path,
    mixture: DataMixture,
    schedule: NoiseSchedule,
    timesteps: Int[np.ndarray, "steps"],
    *,
    sampler: str,
    with_history: bool,
    prediction: str,
    value_range: tuple[float, float],
    origin: dict[str, Any],
) -> None:
    """Writes a start file, atomically.

    Args:
      path: the name must end in .safetensors.
      mixture: the mixture, in the range of the network.
      timesteps: the grid of the sampler, descending.
      sampler: the sampler that the user chose, one of SCHEDULERS.
      with_history: whether multistep solvers use the mixture's prediction at a time above t_start.
      prediction: config.model.prediction.
      value_range: the range of the network's images.
      origin: further entries of the header, which describe the mixture and the network.
    """
    logs = np.asarray(schedule.log_alpha_bars, np.float64)[timesteps + 1]
    sigmas = np.sqrt(np.expm1(-logs))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "image_shape": list(mixture.image_shape),
        "layout": "NHWC",
        "range": list(value_range),
        "alpha_bar": np.exp(logs[0]),
        "timesteps": timesteps.tolist(),
        "real_timesteps": timesteps.astype(float).tolist(),
        "alpha_bars": np.exp(logs).tolist(),
        "sigmas": sigmas.tolist(),
        "history": _history(sigmas) if with_history and len(timesteps) > 1 else None,
        "sampler": sampler,
        "schedulers": _schedulers(prediction, len(timesteps), with_history),
        **origin,
    }
    arrays = {name: np.array(getattr(mixture, name), np.float32) for name in ARRAYS}
    arrays["betas"] = np.array(schedule.betas, np.float64)
    with replacing(path) as temporary:
        temporary.write_bytes(serialized(arrays, metadata={"start": json.dumps(header)}))


def _schedulers(prediction: str, n_steps: int, with_history: bool) -> dict[str, Any]:
    """Returns SCHEDULERS with the prediction type of the network, and with the entry "history".

    This entry says whether the scheduler uses a history with n_steps.
    """
    common = {"prediction_type": PREDICTION_TYPES[prediction]}
    return {
        name: {
            **row,
            "options": row["options"] | common,
            "history": with_history and sampling.lookup(row["sampler"]).takes_history(n_steps),
        }
        for name, row in SCHEDULERS.items()
    }


def _history(sigmas: Float[np.ndarray, "steps"]) -> dict[str, float]:
    """Returns the noise level at which the history is evaluated.

    log(sigma) is as far above its value at t_start as the second time of the grid is below it.
    """
    sigma = sigmas[0] ** 2 / sigmas[1]
    return {"sigma": sigma, "alpha_bar": 1 / (1 + sigma**2)}
