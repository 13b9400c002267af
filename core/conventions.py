"""What networks take and return, by name: their own scaling of x, their own time, their own output.

A network sees y = a x_0 + s noise, which is the x_t of the canonical path (`core.diffusion`) times a factor. So a
network is described by that factor and the name of its time (one of CONVENTIONS), and by its output (one of
PREDICTIONS). sigma is the ratio of noise to signal, s / a, as in Karras et al. (2022, arXiv 2206.00364).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from core.schedules import NoiseSchedule
from core.shapes import Images

LEAST_SIGMA = 1e-4  # the noise at clean data as a network hears of it; also the least divisor where noise divides


class Convention(NamedTuple):
    """How a network scales x and names the time.

    Attributes:
      name: one of CONVENTIONS.
      sigma_data: the standard deviation of the data in EDM's formulas.
      beta_min, beta_max: of the continuous variance-preserving process, whose time "vp" networks are given.
      num_scales: number of times of "vp" and "flow".
    """

    name: str = "ddpm"
    sigma_data: float = 0.5
    beta_min: float = 0.1
    beta_max: float = 20.0
    num_scales: int = 1000


class Moment(NamedTuple):
    """One noise level by all its names. Each is a scalar, or one value per image.

    Attributes:
      t: real time of the schedule; limited to the schedule where sigma is beyond its ends.
      signal, noise: the factors of x_0 and noise in x_t.
      sigma: noise / signal.
    """

    t: jax.Array
    signal: jax.Array
    noise: jax.Array
    sigma: jax.Array


class Seen(NamedTuple):
    """What a network saw: y = a x_0 + s noise, with a and s shaped to broadcast against y."""

    y: Images
    a: ArrayLike
    s: ArrayLike
    sigma_data: float


class Units(NamedTuple):
    """A row of CONVENTIONS.

    Attributes:
      scale: (convention, signal, noise) to the factor of x_t in the network's input.
      time: (convention, schedule, moment) to the network's own time.
    """

    scale: Callable[[Convention, jax.Array, jax.Array], ArrayLike]
    time: Callable[[Convention, NoiseSchedule, Moment], jax.Array]


def _vp_time(own: Convention, schedule: NoiseSchedule, at: Moment) -> jax.Array:
    """M - 1 times the u in [0, 1] with log(1 + sigma^2) = (beta_max - beta_min) u^2 / 2 + beta_min u."""
    rise = own.beta_max - own.beta_min
    integral = jnp.log1p(at.sigma**2)
    root = jnp.sqrt(own.beta_min**2 + 2 * rise * integral)
    return (own.num_scales - 1) * 2 * integral / (own.beta_min + root)  # without a difference of near-equal numbers


def _nearest(own: Convention, schedule: NoiseSchedule, at: Moment) -> jax.Array:
    """The integer t, from -1 on, whose sigma is nearest."""
    levels = schedule.noise_ratio(jnp.arange(-1, schedule.num_timesteps)).astype(at.sigma.dtype)
    return jnp.searchsorted((levels[1:] + levels[:-1]) / 2, at.sigma) - 1


def _nearest_from_above(own: Convention, schedule: NoiseSchedule, at: Moment) -> jax.Array:
    """The same integer, counted from the highest noise, which is 0."""
    return schedule.num_timesteps - 1 - jnp.maximum(_nearest(own, schedule, at), 0)


def _identity(own: Convention, signal: jax.Array, noise: jax.Array) -> float:
    return 1.0


def _exploding(own: Convention, signal: jax.Array, noise: jax.Array) -> jax.Array:
    """y = x_0 + sigma noise."""
    return 1 / signal


CONVENTIONS = {
    # Ho et al. (2020): x_t at its index t.
    "ddpm": Units(_identity, lambda own, schedule, at: at.t),
    # The same, for networks that were trained at integer t only (improved- and guided-diffusion; EDM's iDDPMPrecond).
    "iddpm": Units(_identity, _nearest),
    # The same, with t scaled to 1000 times (improved-diffusion's rescale_timesteps).
    "rescaled": Units(_identity, lambda own, schedule, at: at.t * (1000 / schedule.num_timesteps)),
    # The continuous variance-preserving SDE of Song et al. (2021); EDM's VPPrecond.
    "vp": Units(_identity, _vp_time),
    # The variance-exploding SDE. The time is sigma (score_sde, diffusers), the index of the noise level (discrete
    # networks of score_sde), or log(sigma / 2) (EDM's VEPrecond).
    "sigma": Units(_exploding, lambda own, schedule, at: at.sigma),
    "ve_index": Units(_exploding, _nearest_from_above),
    "ve": Units(_exploding, lambda own, schedule, at: jnp.log(at.sigma / 2)),
    # Karras et al. (2022), table 1: c_in and c_noise.
    "edm": Units(
        lambda own, signal, noise: 1 / jnp.sqrt(noise**2 + (own.sigma_data * signal) ** 2),
        lambda own, schedule, at: jnp.log(at.sigma) / 4,
    ),
    # Rectified flow: y = (1 - u) x_0 + u noise, and the time is u times the number of scales.
    "flow": Units(
        lambda own, signal, noise: 1 / (signal + noise),
        lambda own, schedule, at: own.num_scales * at.sigma / (1 + at.sigma),
    ),
}


Pair = tuple[Images, Images]
"""(x_0, noise), with y = a x_0 + s noise."""


def from_eps(seen: Seen, eps: Images) -> Pair:
    """The network returns the noise (Ho et al. 2020). x_0 is divided by a, so it is worth little at high noise."""
    return (seen.y - seen.s * eps) / seen.a, eps


def from_negative_eps(seen: Seen, output: Images) -> Pair:
    """The network returns -noise, the direction to clean data: s times the score (EDM's VEPrecond)."""
    return from_eps(seen, -output)


def from_score(seen: Seen, score: Images) -> Pair:
    """The network returns the gradient of log p(y), which is -E[noise | y] / s (Song et al. 2021)."""
    return from_eps(seen, -seen.s * score)


def from_x0(seen: Seen, x0: Images) -> Pair:
    """The network returns x_0. The noise is divided by s, so it is worth little near clean data."""
    return x0, (seen.y - seen.a * x0) / jnp.maximum(seen.s, LEAST_SIGMA)


def from_v(seen: Seen, v: Images) -> Pair:
    """The network returns v = a noise - s x_0, where a^2 + s^2 = 1 (Salimans and Ho 2022, appendix D)."""
    return seen.a * seen.y - seen.s * v, seen.s * seen.y + seen.a * v


def from_flow(seen: Seen, velocity: Images) -> Pair:
    """The network returns noise - x_0 (Liu et al. 2022, arXiv 2209.03003)."""
    total = seen.a + seen.s
    return (seen.y - seen.s * velocity) / total, (seen.y + seen.a * velocity) / total


def from_edm(seen: Seen, output: Images) -> Pair:
    """The network returns F of Karras et al. (2022), table 1: -v of the data divided by sigma_data.

    c_in scales y so that (sigma_data a)^2 + s^2 = 1. With it, D = c_skip x + c_out F is sigma_data times the x_0 of v.
    """
    x0, eps = from_v(seen._replace(a=seen.sigma_data * seen.a), -output)
    return seen.sigma_data * x0, eps


PREDICTIONS = {
    "eps": from_eps,
    "v": from_v,
    "x0": from_x0,
    "flow": from_flow,
    "score": from_score,
    "negative_eps": from_negative_eps,
    "edm": from_edm,
}
"""From a network's output to x_0 and the noise, by config.model.prediction."""
