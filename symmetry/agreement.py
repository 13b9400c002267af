"""Compares, at each time, the network's prediction with that of a Gaussian or a mixture fitted to the data.

A late start is accurate at times at which the two predictions agree. `revealed_components` measures how much x_t
reveals about the component to which its image belongs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from core.diffusion import Denoiser, NoiseSchedule
from core.shapes import Images, RandomKey
from sampling.late_start import DataGaussian, DataMixture


@jax.jit
def unexplained_eps(
    denoiser: Denoiser,
    distributions: Sequence[DataGaussian | DataMixture],
    x0: Images,
    times: Real[Array | np.ndarray, "times"],
    rng: RandomKey,
) -> Float[Array, "distributions times"]:
    """Returns, for each time, the fraction of the network's eps that the eps of each distribution does not explain.

    The fraction is sum |eps_network - eps_distribution|^2 / sum |eps_network|^2, where the sums are over x_t of all
    images. For a Gaussian, it is 0 for a perfect network on Gaussian data, and grows as the distribution of the data
    becomes less Gaussian. The noise in x_t is the same at all times. The network is evaluated once per time, on the
    whole batch, for all distributions together.

    x0: images in the network's range.
    """
    schedule = denoiser.schedule
    noise = jax.random.normal(rng, x0.shape, x0.dtype)

    def unexplained(t):
        x_t = schedule.diffuse(x0, t, noise)
        eps = denoiser.eps(x_t, t)
        exact = jnp.stack([distribution.eps(x_t, schedule.alpha_bar(t)) for distribution in distributions])
        return jnp.sum((eps - exact) ** 2, axis=(1, 2, 3, 4)) / jnp.sum(eps**2)

    return jax.lax.map(unexplained, jnp.asarray(times, x0.dtype)).T


@jax.jit
def revealed_components(
    schedule: NoiseSchedule, mixture: DataMixture, x0: Images, times: Real[Array | np.ndarray, "times"], rng: RandomKey
) -> Float[Array, "times"]:
    """Returns, for each time, the mutual information of x_t and component, as a fraction of the component's entropy.

    The fraction is 1 - E[H(component | x_t)] / H(component), where the mean E is over x_t of all images. If the
    components do not overlap, it rises from 0 to 1 as t decreases. For a single component it is 0.

    x0: images in the network's range.
    """
    noise = jax.random.normal(rng, x0.shape, x0.dtype)
    weights = jnp.asarray(mixture.weights, x0.dtype)
    entropy = _entropy(jnp.log(weights))

    def revealed(t):
        log_joint = mixture.log_joint(schedule.diffuse(x0, t, noise), schedule.alpha_bar(t))
        remaining = _entropy(jax.nn.log_softmax(log_joint, axis=1)).mean()
        return jnp.where(entropy > 0, 1 - remaining / jnp.where(entropy > 0, entropy, 1), 0)

    return jax.lax.map(revealed, jnp.asarray(times, x0.dtype))


def _entropy(log_probabilities: Float[Array, "... components"]) -> Float[Array, "..."]:
    """Returns the entropy in nats."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def largest_variance_of_means(mixture: DataMixture) -> float:
    """Returns the largest eigenvalue of the covariance of the components' means, under the components' weights."""
    weights = np.asarray(mixture.weights, np.float64)
    means = np.asarray(mixture.means, np.float64)
    centred = np.sqrt(weights)[:, None] * (means - weights @ means)
    return float(np.linalg.svd(centred, compute_uv=False)[0] ** 2)
