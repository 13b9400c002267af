"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778)."""

import jax
import jax.numpy as jnp

from diffusion import NoiseSchedule
from sampling.common import EpsFn, intervals

OPENING_STEPS = 3


def pndm(
    eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    """Liu et al. (2022), algorithm 2 (F-PNDM): three pseudo Runge-Kutta steps, then pseudo linear multistep.

    As in the authors' code, alpha_bar is read at t truncated towards zero at half steps, while the network sees the
    half step itself.
    """

    def transfer(x, t, s, eps):
        """Equation 11: the step from t to s that is exact if eps is."""
        ab_t, ab_s = schedule.alpha_bar(jnp.trunc(t)), schedule.alpha_bar(jnp.trunc(s))
        signal_t, signal_s = jnp.sqrt(ab_t), jnp.sqrt(ab_s)
        sigma_t, sigma_s = schedule.sigma(jnp.trunc(t)), schedule.sigma(jnp.trunc(s))
        x_weight = 1 / (signal_t * (signal_t + signal_s))
        eps_weight = 1 / (signal_t * (sigma_s * signal_t + sigma_t * signal_s))
        return x + (ab_s - ab_t) * (x_weight * x - eps_weight * eps)

    def runge_kutta(x, t_s):
        """Equation 12: four evaluations, at t, twice at the half step, and at s."""
        t, s = t_s
        half = (t + s) / 2

        def stage(eps, stage_t):
            eps = eps_fn(transfer(x, t, stage_t, eps), stage_t)
            return eps, eps

        _, slopes = jax.lax.scan(stage, jnp.zeros_like(x), jnp.stack([t, half, half, s]))
        eps = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
        return transfer(x, t, s, eps), slopes[0]

    def multistep(carry, t_s):
        """Equation 9: the Adams-Bashforth weights of order four, on the last four predictions."""
        x, history = carry
        t, s = t_s
        history = jnp.concatenate([history[-OPENING_STEPS:], eps_fn(x, t)[None]])
        eps = (55 * history[3] - 59 * history[2] + 37 * history[1] - 9 * history[0]) / 24
        return (transfer(x, t, s, eps), history), None

    times, next_times = intervals(timesteps, x.dtype)
    opening, rest = slice(None, OPENING_STEPS), slice(OPENING_STEPS, None)
    x, history = jax.lax.scan(runge_kutta, x, (times[opening], next_times[opening]))
    if len(times) > OPENING_STEPS:
        history = jnp.concatenate([jnp.zeros_like(x)[None], history])
        (x, _), _ = jax.lax.scan(multistep, (x, history), (times[rest], next_times[rest]))
    return x


def pndm_nfe(n_steps: int) -> int:
    return n_steps + 3 * min(n_steps, OPENING_STEPS)
