"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778)."""

import jax
import jax.numpy as jnp

from core.diffusion import Denoiser
from core.shapes import Images, Timesteps
from sampling.common import ADAMS_BASHFORTH, Callback, Records, evaluate_eps, intervals, linear_multistep, transfer

OPENING_STEPS = 3


def pndm(
    denoiser: Denoiser, x: Images, timesteps: Timesteps, callback: Callback | None = None
) -> tuple[Images, Records]:
    """Liu et al. (2022), algorithm 2 (F-PNDM): three pseudo Runge-Kutta steps, then pseudo linear multistep steps.

    At half steps, as in the authors' code, alpha_bar is read at t truncated towards zero, but the network is evaluated
    at the exact t.
    """
    schedule = denoiser.schedule

    def runge_kutta(x, row):
        """Takes one step, with four evaluations: at t, twice at the half step, and at s."""
        t, s = row
        half = (t + s) / 2

        def stage(eps, stage_t):
            x_weight, eps_weight = transfer(schedule, t, jnp.trunc(stage_t))
            eps, record = evaluate_eps(denoiser, callback, x_weight * x + eps_weight * eps, stage_t)
            return eps, (eps, record)

        _, (slopes, records) = jax.lax.scan(stage, jnp.zeros_like(x), jnp.stack([t, half, half, s]))
        x_weight, eps_weight = transfer(schedule, t, s)
        slope = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
        return x_weight * x + eps_weight * slope, (slopes[0], records)

    times, next_times = intervals(timesteps, x.dtype)
    opening = slice(None, OPENING_STEPS)
    rest = slice(OPENING_STEPS, None)
    x, (slopes, records) = jax.lax.scan(runge_kutta, x, (times[opening], next_times[opening]))
    records = jax.tree.map(lambda record: record.reshape(-1, *record.shape[2:]), records)
    if len(times) <= OPENING_STEPS:
        return x, records
    x_weights, eps_weights = transfer(schedule, times[rest], next_times[rest])
    x, later = linear_multistep(
        lambda x, t: evaluate_eps(denoiser, callback, x, t),
        x,
        times=times[rest],
        x_weights=x_weights,
        weights=eps_weights[:, None] * ADAMS_BASHFORTH[3],
        known=slopes[::-1],
    )
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), records, later)


def pndm_nfe(n_steps: int) -> int:
    """Returns the number of network evaluations: four for each Runge-Kutta step, and one for each later step."""
    return n_steps + 3 * min(n_steps, OPENING_STEPS)
