"""Agreement of the network with the Gaussian of the data, time by time: where it is close, a late start is accurate."""

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
    """The fraction of the network's eps that the Gaussian's eps does not explain, at each time.

    It is sum |eps_network - eps_gaussian|^2 / sum |eps_network|^2 over x_t of images x0 in the network's range, with
    the same noise at all times. It is 0 for a network trained on Gaussian data, and grows as the data's distribution
    differs from a Gaussian. One network evaluation of the batch per time.
    """
    schedule = denoiser.schedule
    noise = jax.random.normal(rng, x0.shape, x0.dtype)

    def unexplained(t):
        x_t = schedule.diffuse(x0, t, noise)
        eps = denoiser.eps(x_t, t)
        return jnp.sum((eps - gaussian.eps(x_t, schedule.alpha_bar(t))) ** 2) / jnp.sum(eps**2)

    return jax.lax.map(unexplained, jnp.asarray(times, x0.dtype))
