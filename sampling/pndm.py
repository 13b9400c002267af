"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778)."""

import jax
import jax.numpy as jnp

from core.diffusion import EpsFn, NoiseSchedule
from sampling.common import ADAMS_BASHFORTH, intervals, linear_multistep, transfer

OPENING_STEPS = 3


def pndm(eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Liu et al. (2022), algorithm 2 (F-PNDM): three pseudo Runge-Kutta steps, then pseudo linear multistep.

    As in the authors' code, alpha_bar is read at t truncated towards zero at half steps, while the network sees the
    half step itself.
    """

    def runge_kutta(x, t_s):
        """Four evaluations, at t, twice at the half step, and at s."""
        t, s = t_s
        half = (t + s) / 2

        def stage(eps, stage_t):
            x_weight, eps_weight = transfer(schedule, t, jnp.trunc(stage_t))
            eps = eps_fn(x_weight * x + eps_weight * eps, stage_t)
            return eps, eps

        _, slopes = jax.lax.scan(stage, jnp.zeros_like(x), jnp.stack([t, half, half, s]))
        x_weight, eps_weight = transfer(schedule, t, s)
        return x_weight * x + eps_weight * (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6, slopes[0]

    times, next_times = intervals(timesteps, x.dtype)
    opening, rest = slice(None, OPENING_STEPS), slice(OPENING_STEPS, None)
    x, slopes = jax.lax.scan(runge_kutta, x, (times[opening], next_times[opening]))
    if len(times) <= OPENING_STEPS:
        return x
    x_weights, eps_weights = transfer(schedule, times[rest], next_times[rest])
    return linear_multistep(eps_fn, x, times[rest], x_weights, eps_weights[:, None] * ADAMS_BASHFORTH[3], slopes[::-1])


def pndm_nfe(n_steps: int) -> int:
    return n_steps + 3 * min(n_steps, OPENING_STEPS)
