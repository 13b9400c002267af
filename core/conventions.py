"""Named parametrisations of networks: how the input is scaled, how the noise level is encoded, what is predicted.

The input of a network is y = a x_0 + s noise, the x_t of the canonical path (`core.diffusion`) times a factor. One of
CONVENTIONS gives that factor and the number that the network receives as its time. One of PREDICTIONS says which
quantity the network returns. sigma is the ratio of noise to signal, s / a, as in Karras et al. (2022, arXiv
2206.00364).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from core.schedules import NoiseSchedule
from core.shapes import Images

LEAST_SIGMA = 1e-4  # lower limit of the sigma passed to a network, and of s where a formula divides by s


class Convention(NamedTuple):
    """How a network scales its input and encodes the noise level as its time input.

    Attributes:
      name: one of CONVENTIONS.
      sigma_data: the standard deviation of the data in EDM's formulas.
      beta_min, beta_max: the betas of the continuous variance-preserving process; the input of "vp" networks is the
        time of this process.
      num_scales: the number of times of "vp" and "flow" networks.
    """

    name: str = "ddpm"
    sigma_data: float = 0.5
    beta_min: float = 0.1
    beta_max: float = 20.0
    num_scales: int = 1000


class NoiseLevel(NamedTuple):
    """One noise level, given as t, as (signal, noise) and as sigma. Each is a scalar, or one value per image.

    Attributes:
      t: the real-valued time in the schedule, clipped to the schedule's range if sigma lies outside.
      signal, noise: the factors of x_0 and of the noise in x_t.
      sigma: noise / signal.
    """

    t: jax.Array
    signal: jax.Array
    noise: jax.Array
    sigma: jax.Array


class NetworkInput(NamedTuple):
    """The input of a network: y = a x_0 + s noise, with a and s shaped to broadcast against y."""

    y: Images
    a: ArrayLike
    s: ArrayLike
    sigma_data: float


class Parametrisation(NamedTuple):
    """A row of CONVENTIONS.

    Attributes:
      scale: maps (convention, signal, noise) to the factor by which x_t is multiplied.
      time: maps (convention, schedule, noise level) to the network's time input.
    """

    scale: Callable[[Convention, jax.Array, jax.Array], ArrayLike]
    time: Callable[[Convention, NoiseSchedule, NoiseLevel], jax.Array]


def _vp_time(own: Convention, schedule: NoiseSchedule, at: NoiseLevel) -> jax.Array:
    """(num_scales - 1) u, where u in [0, 1] solves log(1 + sigma^2) = (beta_max - beta_min) u^2 / 2 + beta_min u."""
    rise = own.beta_max - own.beta_min
    integral = jnp.log1p(at.sigma**2)
    root = jnp.sqrt(own.beta_min**2 + 2 * rise * integral)
    return (own.num_scales - 1) * 2 * integral / (own.beta_min + root)  # this form has no cancellation at small sigma


def _nearest(own: Convention, schedule: NoiseSchedule, at: NoiseLevel) -> jax.Array:
    """The integer t >= -1 whose sigma is nearest."""
    levels = schedule.noise_ratio(jnp.arange(-1, schedule.num_timesteps)).astype(at.sigma.dtype)
    return jnp.searchsorted((levels[1:] + levels[:-1]) / 2, at.sigma) - 1


def _nearest_from_above(own: Convention, schedule: NoiseSchedule, at: NoiseLevel) -> jax.Array:
    """The index of the nearest noise level, where index 0 is the highest noise."""
    return schedule.num_timesteps - 1 - jnp.maximum(_nearest(own, schedule, at), 0)


def _identity(own: Convention, signal: jax.Array, noise: jax.Array) -> float:
    return 1.0


def _exploding(own: Convention, signal: jax.Array, noise: jax.Array) -> jax.Array:
    """The factor with which the network's input is y = x_0 + sigma noise."""
    return 1 / signal


CONVENTIONS = {
    # Ho et al. (2020): the input is x_t and its index t.
    "ddpm": Parametrisation(_identity, lambda own, schedule, at: at.t),
    # As "ddpm", for networks that were trained at integer t only (improved- and guided-diffusion; EDM's iDDPMPrecond).
    "iddpm": Parametrisation(_identity, _nearest),
    # As "ddpm", with t multiplied by 1000 / T (improved-diffusion's rescale_timesteps).
    "rescaled": Parametrisation(_identity, lambda own, schedule, at: at.t * (1000 / schedule.num_timesteps)),
    # The continuous variance-preserving SDE of Song et al. (2021); EDM's VPPrecond.
    "vp": Parametrisation(_identity, _vp_time),
    # The variance-exploding SDE of Song et al. (2021). The time is sigma (score_sde, diffusers), the index of the noise
    # level (discrete networks of score_sde), or log(sigma / 2) (EDM's VEPrecond).
    "sigma": Parametrisation(_exploding, lambda own, schedule, at: at.sigma),
    "ve_index": Parametrisation(_exploding, _nearest_from_above),
    "ve": Parametrisation(_exploding, lambda own, schedule, at: jnp.log(at.sigma / 2)),
    # Karras et al. (2022), table 1: c_in and c_noise.
    "edm": Parametrisation(
        lambda own, signal, noise: 1 / jnp.sqrt(noise**2 + (own.sigma_data * signal) ** 2),
        lambda own, schedule, at: jnp.log(at.sigma) / 4,
    ),
    # Rectified flow: y = (1 - u) x_0 + u noise, and the time is u times the number of scales.
    "flow": Parametrisation(
        lambda own, signal, noise: 1 / (signal + noise),
        lambda own, schedule, at: own.num_scales * at.sigma / (1 + at.sigma),
    ),
}


Pair = tuple[Images, Images]
"""(x_0, noise), with y = a x_0 + s noise."""


def from_eps(seen: NetworkInput, eps: Images) -> Pair:
    """The network returns the noise (Ho et al. 2020).

    The estimate of x_0 is divided by a, so it is inaccurate at high noise.
    """
    return (seen.y - seen.s * eps) / seen.a, eps


def from_negative_eps(seen: NetworkInput, output: Images) -> Pair:
    """The network returns -noise, which is s times the score (EDM's VEPrecond)."""
    return from_eps(seen, -output)


def from_score(seen: NetworkInput, score: Images) -> Pair:
    """The network returns the gradient of log p(y), which is -E[noise | y] / s (Song et al. 2021)."""
    return from_eps(seen, -seen.s * score)


def from_x0(seen: NetworkInput, x0: Images) -> Pair:
    """The network returns x_0. The estimate of the noise is divided by s, so it is inaccurate near clean data."""
    return x0, (seen.y - seen.a * x0) / jnp.maximum(seen.s, LEAST_SIGMA)


def from_v(seen: NetworkInput, v: Images) -> Pair:
    """The network returns v = a noise - s x_0, where a^2 + s^2 = 1 (Salimans and Ho 2022, appendix D)."""
    return seen.a * seen.y - seen.s * v, seen.s * seen.y + seen.a * v


def from_flow(seen: NetworkInput, velocity: Images) -> Pair:
    """The network returns noise - x_0 (Liu et al. 2022, arXiv 2209.03003)."""
    total = seen.a + seen.s
    return (seen.y - seen.s * velocity) / total, (seen.y + seen.a * velocity) / total


def from_edm(seen: NetworkInput, output: Images) -> Pair:
    """The network returns F of Karras et al. (2022), table 1, which equals -v for data divided by sigma_data.

    c_in scales y so that (sigma_data a)^2 + s^2 = 1. Then D = c_skip x + c_out F equals sigma_data times the x_0 that
    `from_v` computes for the rescaled data.
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
"""For each value of config.model.prediction, the function that turns the network's output into x_0 and the noise."""
