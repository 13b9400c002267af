"""Critical times from the eigenvalues of the data's covariance, with three rules in closed form.

A critical time is the time at which the central fixed point of generation becomes unstable along an eigenvector. The
rules take an eigenvalue l of the data's matrix of second moments about the fixed point. If the data are centred at
their mean (see `symmetry`), this matrix is the covariance, and l is an element of `DataGaussian.eigenvalues`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from core.diffusion import NoiseSchedule

Values = Float[np.ndarray, "..."] | np.float64
"""Values with the shape of the argument. NumPy returns a scalar for a scalar."""


def equal_norm(variance: Values) -> Values:
    """Returns the critical alpha_bar, sqrt(1 + l^2) - l, for data of equal norm (Raya and Ambrogioni 2023).

    l is the variance. At this alpha_bar, the Hessian of the potential at the centre,
    beta [(1 + ab) / (2 (1 - ab)) - ab l / (1 - ab)^2], is zero. The formula avoids a difference of nearly equal
    numbers.
    """
    return 1 / (variance + np.sqrt(1 + variance**2))


def gaussian(variance: Values) -> Values:
    """Returns the critical alpha_bar of Gaussian data: 1 / (l - 1) for variance l; NaN for l < 2.

    At a larger alpha_bar, the drift x / 2 - x / (ab l + 1 - ab) points away from the centre. But for Gaussian data x_t
    is Gaussian at all times. So an unstable fixed point does not prove that a Gaussian start at that time is wrong.
    """
    return 1 / np.where(variance >= 2, variance - 1, np.nan)


def speciation(variance: Values) -> Values:
    """Returns the alpha_bar at which the variance ab l of the signal reaches 1: 1 / l for variance l; NaN for l < 1.

    This is the speciation time of Biroli et al. (2024, "Dynamical regimes of diffusion models").
    """
    return 1 / np.where(variance >= 1, variance, np.nan)


RULES: dict[str, Callable[[Values], Values]] = {
    "equal_norm": equal_norm,
    "gaussian": gaussian,
    "speciation": speciation,
}
NAMES = {"equal_norm": "equal norm", "gaussian": "Gaussian", "speciation": "speciation"}  # as printed in tables


def critical_alpha_bars(eigenvalues: ArrayLike, rule: str) -> Values:
    """Returns alpha_bar, in (0, 1], at the critical time of each eigenvalue; NaN for an eigenvalue without one.

    eigenvalues: at least 0, of any shape.
    rule: one of RULES. Raises ValueError for another.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not known; choose from {', '.join(RULES)}")
    return RULES[rule](np.asarray(eigenvalues, np.float64))


def critical_times(eigenvalues: ArrayLike, schedule: NoiseSchedule, rule: str) -> Float[np.ndarray, "..."]:
    """Returns the times t of `critical_alpha_bars` on a schedule, real numbers from -1 to T - 1, or NaN.

    Critical times beyond the end of the schedule are returned as T - 1.
    """
    return times_of(critical_alpha_bars(eigenvalues, rule), schedule)


def leading_times(eigenvalues: ArrayLike, schedule: NoiseSchedule) -> dict[str, float]:
    """Returns the critical time of the largest eigenvalue for each rule, by the rule's name, to mark in figures."""
    leading = np.max(eigenvalues)
    return {NAMES[rule]: float(critical_times(leading, schedule, rule)) for rule in RULES}


def times_of(alpha_bars: ArrayLike, schedule: NoiseSchedule) -> Float[np.ndarray, "..."]:
    """Returns the times t, real numbers from -1 to T - 1, of these alpha_bars. Inverse of `schedule.alpha_bar`."""
    ab = np.asarray(alpha_bars, np.float64)
    with jax.enable_x64(True), np.errstate(divide="ignore"):  # alpha_bar = 1 has infinite log SNR
        return np.asarray(schedule.time_at(jnp.asarray(np.log(ab) - np.log1p(-ab)) / 2))


def continuous_times(alpha_bars: ArrayLike, schedule: NoiseSchedule) -> Values:
    """Returns the times s of these alpha_bars in the variance-preserving SDE of Song et al. (2021).

    The schedule must be linear. In the SDE, ab(s) = exp(-B s - (B' - B) s^2 / 2), where B and B' are T times the first
    and the last beta of the schedule. s is 0 for clean data and slightly above 1 at t = T - 1. It differs slightly from
    (t + 1) / T, because the product of all 1 - beta decreases faster than the product of all exp(-beta).
    """
    betas = np.asarray(schedule.betas, np.float64)
    first = schedule.num_timesteps * betas[0]
    rise = schedule.num_timesteps * (betas[-1] - betas[0])
    decay = -np.log(np.asarray(alpha_bars, np.float64))
    return 2 * decay / (first + np.sqrt(first**2 + 2 * rise * decay))
