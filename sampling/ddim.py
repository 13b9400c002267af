"""DDIM and DDPM: one update formula in which eta sets the amount of fresh noise (Song et al. 2021, DDIM)."""

import jax
import jax.numpy as jnp

from core.diffusion import Denoiser
from core.rng import image_noise
from core.shapes import Images, Keys, Timesteps
from sampling.common import Callback, Records, evaluate, intervals


def ddim(
    denoiser: Denoiser,
    x: Images,
    timesteps: Timesteps,
    callback: Callback | None = None,
    keys: Keys | None = None,
    eta: float = 0.0,
) -> tuple[Images, Records]:
    """Samples with equation 12 of Song et al. (2021), with the noise of equation 16 scaled by eta.

    With eta = 0 this is DDIM, which needs no keys. With eta = 1 it is the ancestral sampling of DDPM (Ho et al. 2020,
    algorithm 2, with the posterior variance) on any grid.
    """
    schedule = denoiser.schedule

    def step(x, row):
        i, t, s = row
        (x0, eps), record = evaluate(denoiser, callback, x, t)
        forgotten = jnp.sqrt(-jnp.expm1(schedule.log_alpha_bar(t) - schedule.log_alpha_bar(s)))
        kept = schedule.signal(t) * schedule.sigma(s) / (schedule.signal(s) * schedule.sigma(t))
        # With eta = 1 the noise in x_s is sigma_s (kept eps + (forgotten / sigma_t) z), where z is new noise.
        # `forgotten` is sqrt(1 - ab_t / ab_s), and kept^2 + (forgotten / sigma_t)^2 = 1. Neither is computed as a
        # difference of nearly equal numbers.
        x = schedule.signal(s) * x0 + schedule.sigma(s) * jnp.sqrt(1 - eta**2 + (eta * kept) ** 2) * eps
        if eta:
            x += eta * schedule.sigma(s) / schedule.sigma(t) * forgotten * image_noise(keys, i, x)
        return x, record

    times, next_times = intervals(timesteps, x.dtype)
    return jax.lax.scan(step, x, (jnp.arange(len(times)), times, next_times))


def ddpm(
    denoiser: Denoiser,
    x: Images,
    timesteps: Timesteps,
    callback: Callback | None = None,
    *,
    keys: Keys,
) -> tuple[Images, Records]:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, algorithm 2). This is `ddim` with eta = 1."""
    return ddim(denoiser, x, timesteps, callback, keys, eta=1.0)
