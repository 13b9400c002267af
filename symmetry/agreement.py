"""How Gaussian the network takes the noised data to be, time by time: where a late start loses nothing."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from core.diffusion import EpsFn, NoiseSchedule
from sampling.late_start import DataGaussian


@jax.jit
def gaussian_agreement(
    eps_fn: EpsFn, gaussian: DataGaussian, schedule: NoiseSchedule, x0: jax.Array, times: ArrayLike, rng: jax.Array
) -> jax.Array:
    """[n], the share of the network's eps that the Gaussian's eps leaves unexplained at `times` [n].

    It is sum |eps_network - eps_gaussian|^2 / sum |eps_network|^2 over x_t of images x0 [B, H, W, C] in the network's
    range, with one noise at all times: 0 for a network that has learned Gaussian data, and the larger the more the
    data's own shape shows. One network call on the batch per time. eps_fn is a pytree (see `models.make_eps_fn`).
    """
    noise = jax.random.normal(rng, x0.shape, x0.dtype)

    def unexplained(t):
        x_t = schedule.diffuse(x0, t, noise)
        eps = eps_fn(x_t, jnp.full(len(x0), t, x0.dtype))
        return jnp.sum((eps - gaussian.eps(x_t, schedule.alpha_bar(t))) ** 2) / jnp.sum(eps**2)

    return jax.lax.map(unexplained, jnp.asarray(times, x0.dtype))
