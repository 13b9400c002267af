"""Time grids: the times at which a sampler evaluates the network. They are integers, except for `sigma_rho`."""

import re

import numpy as np
from jaxtyping import Float, Int32

from core.schedules import NoiseSchedule, rho_sigmas


def linear(n_steps: int, t_start: int, schedule: NoiseSchedule | None) -> Float[np.ndarray, "{n_steps}"]:
    """Equal steps in t, truncated to integers, as in the paper."""
    return np.floor(np.linspace(0, t_start, n_steps))


def quadratic(n_steps: int, t_start: int, schedule: NoiseSchedule | None) -> Float[np.ndarray, "{n_steps}"]:
    """Equal steps in sqrt(t), as DDIM uses for CIFAR-10 (Song et al. 2021, appendix D.2)."""
    return np.linspace(0, np.sqrt(t_start), n_steps) ** 2


def logsnr(n_steps: int, t_start: int, schedule: NoiseSchedule | None) -> Float[np.ndarray, "{n_steps}"]:
    """Equal steps in log(signal / sigma), as DPM-Solver uses (Lu et al. 2022, arXiv 2206.00927)."""
    if schedule is None:
        raise ValueError("spacing 'logsnr' needs the noise schedule")
    if t_start >= schedule.num_timesteps:
        raise ValueError(f"t_start={t_start} is beyond the schedule's last time {schedule.num_timesteps - 1}")
    times = np.arange(schedule.num_timesteps)
    lambdas = np.asarray(schedule.half_log_snr(times))
    return np.interp(np.linspace(lambdas[0], lambdas[t_start], n_steps), lambdas[::-1], times[::-1])


def trailing(n_steps: int, t_start: int, schedule: NoiseSchedule | None) -> Float[np.ndarray, "{n_steps}"]:
    """Equal steps in t, including the last step to t = -1 (Lin et al. 2024, table 2).

    So the smallest time of the grid is about (t_start + 1) / n_steps - 1 instead of 0.
    """
    return t_start - np.rint(np.arange(n_steps) * (t_start + 1) / n_steps)[::-1]


def sigma_rho(n_steps: int, t_start: int, schedule: NoiseSchedule | None) -> Float[np.ndarray, "{n_steps}"]:
    """Equal steps in sigma ** (1 / 7), where sigma = noise / signal (Karras et al. 2022, equation 5).

    These times are not rounded to integers. On the schedule "edm", with sigma = 0.002 at t = 0 and 80 at t = T - 1,
    this is the grid of the sampler of Karras et al.
    """
    if schedule is None:
        raise ValueError("spacing 'sigma_rho' needs the noise schedule")
    logs = np.asarray(schedule.log_alpha_bars, np.float64)
    sigmas = np.sqrt(np.expm1(-logs))
    wanted = rho_sigmas(sigmas[1], sigmas[t_start + 1], n_steps)
    times = np.interp(np.log1p(wanted**2), -logs, np.arange(-1, len(logs) - 1))
    times[[0, -1]] = 0, t_start  # removes rounding errors
    return times


AUTO_START = -1  # sampling.t_start of an automatic start, see `auto_start`
AUTO_SPACING = "auto"  # sampling.spacing of an automatic grid, see `auto_grid`
GAUSSIAN_SPACING = "gaussian"  # sampling.spacing of the best grid for the data's Gaussian, see `gaussian_grid`
SPACINGS = {"linear": linear, "quadratic": quadratic, "logsnr": logsnr, "trailing": trailing, "sigma_rho": sigma_rho}
REAL_SPACINGS = ("sigma_rho",)  # the spacings whose times are not rounded to integers


def time_grid(
    n_steps: int, t_start: int, spacing: str = "linear", schedule: NoiseSchedule | None = None
) -> Int32[np.ndarray, "{n_steps}"] | Float[np.ndarray, "{n_steps}"]:
    """Returns strictly descending times from t_start to 0, or to a time above 0 for `trailing`.

    The times are integers, except for `sigma_rho`. With n_steps = 1 the only time is t_start. After the last time of
    the grid, a sampler takes one more step, to clean data (t = -1). Where a spacing gives an integer twice, the nearest
    unused integer is taken instead. `logsnr` and `sigma_rho` need the schedule. Raises ValueError for an unknown
    spacing, a missing schedule, and more steps than there are integers from 0 to t_start.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is not known; choose from {', '.join(SPACINGS)}")
    if not 1 <= n_steps <= t_start + 1:
        raise ValueError(f"n_steps={n_steps} must be from 1 to t_start + 1 = {t_start + 1}: every step has its own t")
    if n_steps == 1:
        return np.array([t_start], np.int32)
    ascending = SPACINGS[spacing](n_steps, t_start, schedule)
    if spacing in REAL_SPACINGS:
        return ascending[::-1]
    rank = np.arange(n_steps)
    unused = np.maximum.accumulate(np.rint(ascending).astype(np.int32) - rank)  # integers skipped so far
    return (np.minimum(unused, t_start + 1 - n_steps) + rank)[::-1].astype(np.int32)


MOST_STARTS = 10_000  # the most times in a range of starts


def starts_of(entry: int | str) -> list[int]:
    """Expands one entry of config.sweep.t_starts: a time, a range "first:last:step", or "auto" (AUTO_START).

    Raises ValueError for any other entry, times below 1, and ranges of more than MOST_STARTS times.
    """
    if entry == "auto":
        return [AUTO_START]
    is_range = isinstance(entry, str) and re.fullmatch(r"\d+:\d+:\d+", entry)
    first, last, step = map(int, entry.split(":")) if is_range else (entry, entry, 1)
    if not (isinstance(first, int) and 1 <= first <= last < first + MOST_STARTS * step and step >= 1):
        raise ValueError(
            f"{entry!r} must be a time of at least 1, 'auto', or 'first:last:step', at most {MOST_STARTS} of them"
        )
    return list(range(first, last + 1, step))
