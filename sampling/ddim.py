"""DDIM and DDPM: the same update with less or more fresh noise (Song et al., "Denoising diffusion implicit models")."""

import jax
import jax.numpy as jnp

from core.diffusion import EpsFn, NoiseSchedule
from core.rng import image_noise
from sampling.common import intervals


def ddim(
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    x: jax.Array,
    timesteps: jax.Array,
    keys: jax.Array | None = None,
    eta: float = 0.0,
) -> jax.Array:
    """Song et al. (2021), equation 12, with the noise of equation 16 scaled by eta.

    eta = 0 is DDIM and needs no keys; eta = 1 is DDPM's ancestral sampling (Ho et al. 2020, algorithm 2, with the
    posterior variance) on any grid.
    """

    def step(x, i_t_s):
        i, t, s = i_t_s
        eps = eps_fn(x, t)
        x0 = schedule.predict_x0(x, t, eps)
        forgotten = jnp.sqrt(-jnp.expm1(schedule.log_alpha_bar(t) - schedule.log_alpha_bar(s)))
        kept = schedule.signal(t) * schedule.sigma(s) / (schedule.signal(s) * schedule.sigma(t))
        # kept^2 + (forgotten / sigma_t)^2 = 1; written so, no difference of near-equal numbers is taken
        x = schedule.signal(s) * x0 + schedule.sigma(s) * jnp.sqrt(1 - eta**2 + (eta * kept) ** 2) * eps
        if eta:
            x += eta * schedule.sigma(s) / schedule.sigma(t) * forgotten * image_noise(keys, i, x)
        return x, None

    times, next_times = intervals(timesteps, x.dtype)
    x, _ = jax.lax.scan(step, x, (jnp.arange(len(times)), times, next_times))
    return x


def ddpm(eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array, keys: jax.Array) -> jax.Array:
    return ddim(eps_fn, schedule, x, timesteps, keys, eta=1.0)
