"""Which of the trained times a sampler visits."""

import re

import numpy as np

from core.diffusion import NoiseSchedule


def linear(n_steps: int, t_start: int, schedule: NoiseSchedule) -> np.ndarray:
    """Equal steps in t, truncated to integers: the paper's grid."""
    return np.floor(np.linspace(0, t_start, n_steps))


def quadratic(n_steps: int, t_start: int, schedule: NoiseSchedule) -> np.ndarray:
    """Equal steps in sqrt(t): DDIM's grid for CIFAR-10 (Song et al. 2021, appendix D.2)."""
    return np.linspace(0, np.sqrt(t_start), n_steps) ** 2


def logsnr(n_steps: int, t_start: int, schedule: NoiseSchedule) -> np.ndarray:
    """Equal steps in log(signal / sigma): the grid of DPM-Solver (Lu et al. 2022, arXiv 2206.00927)."""
    if t_start >= schedule.num_timesteps:
        raise ValueError(f"t_start={t_start} is beyond the schedule's last time {schedule.num_timesteps - 1}")
    times = np.arange(schedule.num_timesteps)
    lambdas = np.asarray(schedule.half_log_snr(times))
    return np.interp(np.linspace(lambdas[0], lambdas[t_start], n_steps), lambdas[::-1], times[::-1])


def trailing(n_steps: int, t_start: int, schedule: NoiseSchedule) -> np.ndarray:
    """Equal steps in t, down to t = -1 rather than 0 (Lin et al. 2024, table 2), so the last is as long as the others.

    The last time visited is about (t_start + 1) / n_steps - 1, not 0.
    """
    return t_start - np.rint(np.arange(n_steps) * (t_start + 1) / n_steps)[::-1]


AUTO_START, AUTO_SPACING = -1, "auto"  # in a config: to be found by a trial, see `pilot`
SPACINGS = {"linear": linear, "quadratic": quadratic, "logsnr": logsnr, "trailing": trailing}


def time_grid(n_steps: int, t_start: int, spacing: str = "linear", schedule: NoiseSchedule | None = None) -> np.ndarray:
    """int32 [n_steps], strictly descending from t_start to 0 (n_steps = 1: t_start alone; trailing: to a later t).

    The step from the last time goes to t = -1, clean data. Where a spacing would visit an integer twice, the nearest
    one that is free takes its place. Only logsnr reads the schedule, NoiseSchedule.linear() by default. Raises
    ValueError where no such grid exists.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is not known; choose from {', '.join(SPACINGS)}")
    if not 1 <= n_steps <= t_start + 1:
        raise ValueError(f"n_steps={n_steps} must be from 1 to t_start + 1 = {t_start + 1}: every step has its own t")
    if n_steps == 1:
        return np.array([t_start], np.int32)
    ascending = SPACINGS[spacing](n_steps, t_start, schedule or NoiseSchedule.linear())
    rank = np.arange(n_steps)
    unused = np.maximum.accumulate(np.rint(ascending).astype(np.int32) - rank)  # integers passed over so far
    return (np.minimum(unused, t_start + 1 - n_steps) + rank)[::-1].astype(np.int32)


MOST_STARTS = 10_000  # of a range


def starts_of(entry: int | str) -> list[int]:
    """The starts that an entry of config.sweep.t_starts stands for: itself, or "300:700:100" from 300 to 700 by 100.

    "auto" is AUTO_START. Raises ValueError for what is neither, or not at least 1.
    """
    if entry == "auto":
        return [AUTO_START]
    first, last, step = entry, entry, 1
    if isinstance(entry, str) and re.fullmatch(r"\d+:\d+:\d+", entry):
        first, last, step = map(int, entry.split(":"))
    if not (isinstance(first, int) and 1 <= first <= last < first + MOST_STARTS * step and step >= 1):
        raise ValueError(
            f"{entry!r} must be a time of at least 1, 'auto', or 'first:last:step', at most {MOST_STARTS} of them"
        )
    return list(range(first, last + 1, step))
