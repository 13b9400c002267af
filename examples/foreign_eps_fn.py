"""A late start for a model of another project, which needs only a noise prediction and images.

python -m examples.foreign_eps_fn

The foreign model is an exact mixture of five Gaussians, so that samples can be compared with the true distribution. Its
images are NCHW, as in PyTorch. Every sampler draws samples with and without a late start.
"""

import jax
import numpy as np
from jaxtyping import Array, Float

import sampling
from core import tables
from core.diffusion import Denoiser, NoiseSchedule
from core.shapes import Images, RandomKey
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid
from symmetry.exact import Mixture

SCHEDULE = NoiseSchedule.linear()
SHAPE = (4, 4, 1)  # height, width, channels
COMPONENTS = 5
SPREAD = 0.15  # standard deviation of a component
N_STEPS = 5
T_START = 400
COUNT = 8192

MEANS = np.random.default_rng(0).choice([-0.7, 0.7], (COMPONENTS, np.prod(SHAPE)))
MIXTURE = Mixture(MEANS, np.full(COMPONENTS, SPREAD**2), np.full(COMPONENTS, 1 / COMPONENTS))


def foreign_model(
    x: Float[Array, "batch channels height width"], t: Float[Array, "batch"]
) -> Float[Array, "batch channels height width"]:
    """Predicts the noise in x."""
    return MIXTURE.eps(x, SCHEDULE.alpha_bar(t))


def foreign_images(count: int, seed: int) -> Float[np.ndarray, "{count} height width channels"]:
    """Draws images from the data distribution of the foreign model."""
    rng = np.random.default_rng(seed)
    flat = MEANS[rng.integers(0, COMPONENTS, count)] + SPREAD * rng.standard_normal((count, MEANS.shape[1]))
    return flat.reshape(count, *SHAPE).astype(np.float32)


def eps_fn(x: Images, t: Float[Array, "batch"]) -> Images:
    """Calls the foreign model with images in this project's order of axes, NHWC."""
    return foreign_model(x.transpose(0, 3, 1, 2), t).transpose(0, 2, 3, 1)


DENOISER = Denoiser(eps_fn, SCHEDULE)

sample = jax.jit(sampling.sample, static_argnames="name")  # compiled once per sampler, for all starts


def late_start(sampler: str, gaussian: DataGaussian, noise: Images, rng: RandomKey) -> Images:
    """Samples from a late start. These three lines are all that a program needs after the Gaussian is fitted."""
    x = gaussian.sample(noise, SCHEDULE.alpha_bar(T_START))
    history = jax.tree_util.Partial(DataGaussian.predictions, gaussian, noise)  # for multistep solvers
    return sample(sampler, DENOISER, x, timesteps=time_grid(N_STEPS, T_START), rng=rng, history=history)


def full_start(sampler: str, noise: Images, rng: RandomKey) -> Images:
    """Samples from pure noise."""
    timesteps = time_grid(N_STEPS, SCHEDULE.num_timesteps - 1)
    return sample(sampler, DENOISER, noise, timesteps=timesteps, rng=rng)


def distance(
    images: Float[Array | np.ndarray, "batch ..."], others: Float[np.ndarray, "batch ..."], directions: int = 200
) -> float:
    """Returns the sliced 2-Wasserstein distance between two sets with the same number of images.

    It is the root mean square difference of the sorted projections on random directions (Rabin et al. 2012,
    "Wasserstein barycenter and its application to texture mixing").
    """
    lines = np.random.default_rng(2).standard_normal((others[0].size, directions))
    lines /= np.linalg.norm(lines, axis=0)
    projections, other_projections = (
        np.sort(np.asarray(x).reshape(len(x), -1) @ lines, axis=0) for x in (images, others)
    )
    return float(np.sqrt(np.mean((projections - other_projections) ** 2)))


def main() -> dict[str, tuple[float, float]]:
    """Prints the table. Returns, for each sampler, the distances of samples from pure noise and from the late start."""
    gaussian = DataGaussian.fit([foreign_images(20_000, seed=1)])
    truth = foreign_images(COUNT, seed=2)
    more_truth = foreign_images(COUNT, seed=3)
    noise = jax.random.normal(jax.random.key(0), truth.shape)
    rng = jax.random.key(1)
    distances = {}
    for sampler in sampling.SAMPLERS:
        full = distance(full_start(sampler, noise, rng), truth)
        late = distance(late_start(sampler, gaussian, noise=noise, rng=rng), truth)
        distances[sampler] = full, late
    rows = [
        (name, str(sampling.nfe(name, N_STEPS) or "adaptive"), f"{full:.4f}", f"{late:.4f}", f"{full / late:.1f}x")
        for name, (full, late) in distances.items()
    ]
    header = ("sampler", "NFE", f"from {SCHEDULE.num_timesteps - 1}", f"late, from {T_START}", "gain")
    print(tables.aligned(header, rows))
    print(
        f"sliced 2-Wasserstein distance to {COUNT} true images, n = {N_STEPS}; "
        f"{COUNT} other true images have the distance {distance(more_truth, truth):.4f}"
    )
    return distances


if __name__ == "__main__":
    main()
