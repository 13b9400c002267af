"""Compares the network with the Gaussian of the data at each time. A late start is accurate where they agree."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from core.diffusion import Denoiser
from core.shapes import Images, RandomKey
from sampling.late_start import DataGaussian


@jax.jit
def gaussian_agreement(
    denoiser: Denoiser, gaussian: DataGaussian, x0: Images, times: Real[Array, "times"], rng: RandomKey
) -> Float[Array, "times"]:
    """Returns, for each time, the fraction of the network's eps that the Gaussian's eps does not explain.

    The fraction is sum |eps_network - eps_gaussian|^2 / sum |eps_network|^2, summed over x_t of all images x0. It is 0
    for a perfect network on Gaussian data, and larger if the distribution of the data is less Gaussian. The noise in
    x_t is the same at all times. The network is evaluated once per time, on the whole batch.

    x0: images in the network's range.
    """
    schedule = denoiser.schedule
    noise = jax.random.normal(rng, x0.shape, x0.dtype)

    def unexplained(t):
        x_t = schedule.diffuse(x0, t, noise)
        eps = denoiser.eps(x_t, t)
        return jnp.sum((eps - gaussian.eps(x_t, schedule.alpha_bar(t))) ** 2) / jnp.sum(eps**2)

    return jax.lax.map(unexplained, jnp.asarray(times, x0.dtype))
