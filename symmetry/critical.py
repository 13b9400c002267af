"""From data alone: when each direction of a covariance becomes unstable, by three rules in closed form.

l is an eigenvalue of the data's second-moment matrix about the fixed point. Centred at the mean, as in the frame that
moves with it (see `symmetry`), that matrix is the covariance, so l is one of `DataGaussian.eigenvalues`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from core.diffusion import NoiseSchedule


def equal_norm(variance: np.ndarray) -> np.ndarray:
    """Data of equal norm, as in the paper: the Hessian at the centre is beta [(1 + ab) / (2 (1 - ab)) - ab l /
    (1 - ab)^2] along l, zero at sqrt(1 + l^2) - l. Written without the difference of near-equal numbers.
    """
    return 1 / (variance + np.sqrt(1 + variance**2))


def gaussian(variance: np.ndarray) -> np.ndarray:
    """Gaussian data: the drift x / 2 - x / (ab l + 1 - ab) pushes outwards once ab (l - 1) > 1; never for l < 2.

    The marginal stays Gaussian all the while: instability alone does not prove that a Gaussian start is too late.
    """
    return 1 / np.where(variance >= 2, variance - 1, np.nan)


def speciation(variance: np.ndarray) -> np.ndarray:
    """Biroli et al. 2024 ("Dynamical regimes of diffusion models"): the signal ab l reaches the noise's variance 1.

    Never for l < 1.
    """
    return 1 / np.where(variance >= 1, variance, np.nan)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "equal_norm": equal_norm,
    "gaussian": gaussian,
    "speciation": speciation,
}
NAMES = {"equal_norm": "equal norm", "gaussian": "Gaussian", "speciation": "speciation"}  # for people


def critical_alpha_bars(eigenvalues: ArrayLike, rule: str) -> np.ndarray:
    """The alpha_bar at which each direction's critical time falls, in (0, 1]; NaN where it never does.

    eigenvalues: any shape, at least 0. Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not known; choose from {', '.join(RULES)}")
    return RULES[rule](np.asarray(eigenvalues, np.float64))


def critical_times(eigenvalues: ArrayLike, schedule: NoiseSchedule, rule: str) -> np.ndarray:
    """The discrete time of `critical_alpha_bars`, -1 <= t <= T - 1, between integers as it falls; NaN for never.

    What would be critical beyond the schedule's last time gets T - 1.
    """
    return times_of(critical_alpha_bars(eigenvalues, rule), schedule)


def leading_times(eigenvalues: ArrayLike, schedule: NoiseSchedule) -> dict[str, float]:
    """When the broadest direction becomes unstable, by the name of each rule: what is marked in figures against t."""
    leading = np.max(eigenvalues)
    return {NAMES[rule]: float(critical_times(leading, schedule, rule)) for rule in RULES}


def times_of(alpha_bars: ArrayLike, schedule: NoiseSchedule) -> np.ndarray:
    """The discrete t, -1 to T - 1, at which the schedule has these alpha_bars: the inverse of `schedule.alpha_bar`."""
    ab = np.asarray(alpha_bars, np.float64)
    with jax.enable_x64(True), np.errstate(divide="ignore"):  # alpha_bar = 1 is t = -1, of infinite log SNR
        return np.asarray(schedule.time_at(jnp.asarray(np.log(ab) - np.log1p(-ab)) / 2))


def continuous_times(alpha_bars: ArrayLike, schedule: NoiseSchedule) -> np.ndarray:
    """The time s of the continuous diffusion with the same betas, ab(s) = exp(-B s - (B' - B) s^2 / 2).

    It is 0 for clean data and a little above 1 at the schedule's last t. B and B' are T times the schedule's first and
    last beta: the variance-preserving SDE of Song et al. (2021, "Score-based generative modeling"). Not quite
    (t + 1) / T: the product of 1 - beta falls a little faster than exp(-beta).
    """
    betas = np.asarray(schedule.betas, np.float64)
    first, rise = schedule.num_timesteps * betas[0], schedule.num_timesteps * (betas[-1] - betas[0])
    decay = -np.log(np.asarray(alpha_bars, np.float64))
    return 2 * decay / (first + np.sqrt(first**2 + 2 * rise * decay))
