"""A late start around a model that this project knows nothing of: its images, and a function that predicts noise.

python examples/foreign_eps_fn.py

The foreign model here is an exact mixture of five blobs, so that the samples can be held against the true
distribution; its images are NCHW, as PyTorch's are. Every sampler of the registry draws with and without a late start.
"""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import sampling
from core import tables
from core.diffusion import NoiseSchedule
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid
from symmetry.exact import Mixture

SCHEDULE = NoiseSchedule.linear()
SHAPE, BLOBS, SPREAD = (4, 4, 1), 5, 0.15  # of an image; of the data
N_STEPS, T_START, COUNT = 5, 400, 8192

MEANS = np.random.default_rng(0).choice([-0.7, 0.7], (BLOBS, np.prod(SHAPE)))
MIXTURE = Mixture(MEANS, np.full(BLOBS, SPREAD**2), np.full(BLOBS, 1 / BLOBS))


def foreign_model(x: jax.Array, t: jax.Array) -> jax.Array:
    """The noise in x [B, C, H, W] at t [B], as the others' code predicts it."""
    return MIXTURE.eps(x, SCHEDULE.alpha_bar(t))


def foreign_images(count: int, seed: int) -> np.ndarray:
    """float32 [count, H, W, C], what the model was trained on."""
    rng = np.random.default_rng(seed)
    flat = MEANS[rng.integers(0, BLOBS, count)] + SPREAD * rng.standard_normal((count, MEANS.shape[1]))
    return flat.reshape(count, *SHAPE).astype(np.float32)


def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
    return foreign_model(x.transpose(0, 3, 1, 2), t).transpose(0, 2, 3, 1)


sample = jax.jit(sampling.sample, static_argnums=(0, 1))  # compiled once a sampler, for every start


def late_start(sampler: str, gaussian: DataGaussian, noise: jax.Array, rng: jax.Array) -> jax.Array:
    """All that there is to it, once `gaussian` is fitted: images [B, H, W, C] from noise of that shape."""
    x = gaussian.sample(noise, SCHEDULE.alpha_bar(T_START))
    history = jax.tree_util.Partial(DataGaussian.predictions, gaussian, noise)  # for multistep solvers
    return sample(sampler, eps_fn, SCHEDULE, x, time_grid(N_STEPS, T_START), rng, history)


def full_start(sampler: str, noise: jax.Array, rng: jax.Array) -> jax.Array:
    return sample(sampler, eps_fn, SCHEDULE, noise, time_grid(N_STEPS, SCHEDULE.num_timesteps - 1), rng)


def distance(images: jax.Array, others: np.ndarray, directions: int = 200) -> float:
    """The sliced 2-Wasserstein distance of two sets [B, ...] of one size: sorted along random directions, then apart.

    Rabin et al. (2012), "Wasserstein barycenter and its application to texture mixing".
    """
    lines = np.random.default_rng(2).standard_normal((others[0].size, directions))
    lines /= np.linalg.norm(lines, axis=0)
    mine, theirs = (np.sort(np.asarray(x).reshape(len(x), -1) @ lines, axis=0) for x in (images, others))
    return float(np.sqrt(np.mean((mine - theirs) ** 2)))


def main() -> dict[str, tuple[float, float]]:
    """Prints the table; returns the distances of every sampler, from pure noise and from the late start."""
    gaussian = DataGaussian.fit([foreign_images(20_000, seed=1)])
    truth, floor = foreign_images(COUNT, seed=2), foreign_images(COUNT, seed=3)
    noise, rng, found = jax.random.normal(jax.random.key(0), truth.shape), jax.random.key(1), {}
    for sampler in sampling.SAMPLERS:
        drawn = full_start(sampler, noise, rng), late_start(sampler, gaussian, noise, rng)
        found[sampler] = tuple(distance(images, truth) for images in drawn)
    rows = [
        (name, str(sampling.nfe(name, N_STEPS) or "adaptive"), f"{full:.4f}", f"{late:.4f}", f"{full / late:.1f}x")
        for name, (full, late) in found.items()
    ]
    header = "sampler", "NFE", f"from {SCHEDULE.num_timesteps - 1}", f"late, from {T_START}", "gain"
    print(tables.aligned(header, rows))
    print(f"sliced 2-Wasserstein distance to {COUNT} true images, n = {N_STEPS}; of {COUNT} others: ", end="")
    print(f"{distance(floor, truth):.4f}")
    return found


if __name__ == "__main__":
    main()
