"""Images to batches: an endless shuffled stream to train on, and one pass in order."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from parallel import own_rows


def train_batches(images: np.ndarray, config: ConfigDict, first_step: int) -> Iterator[np.ndarray]:
    """Endless uint8 batches [B, H, W, C] from step `first_step` on; batch k is a function of (seed, k) alone.

    Every epoch sees each image once, in an order of its own. A process reads only its own rows of each batch, as
    `own_rows` says, which raises ValueError where B does not divide.
    """
    import grain  # takes a quarter of a second, and only training needs it

    size = config.training.batch_size
    own = own_rows(size)

    def fetch(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = config.data.random_flip & (rng.random(len(indices)) < 0.5)
        batch = images[indices[own]]
        return np.where(flipped[own, None, None, None], batch[:, :, ::-1], batch)

    indices = grain.MapDataset.range(len(images)).seed(config.seed).shuffle().repeat()
    batches = indices.batch(size).random_map(fetch)
    # One thread keeps ahead of any step measured here (benchmarks/input.py); more only compete with the CPU backend.
    stream = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))
    stream.set_state({"next_index": first_step})
    return stream


def in_order(images: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each image exactly once: (batch, count), every batch of one size, in the last all beyond count is padding.

    A process reads only its own rows, and count is how many of them are images.
    """
    own = own_rows(batch_size)
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start + own.start : start + own.stop])
        padding = ((0, own.stop - own.start - len(batch)), (0, 0), (0, 0), (0, 0))
        yield np.pad(batch, padding), len(batch)


def to_network_range(images: jax.Array, centered: bool) -> jax.Array:
    """Pixels 0..255 of any real dtype to float32 in [-1, 1] where centered, else [0, 1]."""
    unit = images.astype(jnp.float32) / 255
    return 2 * unit - 1 if centered else unit


def to_uint8(x: jax.Array, centered: bool) -> jax.Array:
    """The network's range back to pixels, clipped and rounded to the nearest, as images on disk are."""
    unit = (x + 1) / 2 if centered else x
    return jnp.round(255 * jnp.clip(unit, 0, 1)).astype(jnp.uint8)
