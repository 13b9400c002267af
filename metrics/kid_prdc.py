"""What one distance hides: scores of two sets of features themselves, each with its paper's estimator.

`real` and `fake` are features [N, d] and [M, d]. All is computed in float64, a block of pairs at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SUBSETS, SUBSET_SIZE = 100, 1000  # of the KID
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
BLOCK = 1000  # rows of a matrix of distances that are held at once


class Kid(NamedTuple):
    mean: float
    std: float | None  # over the subsets; None where all are the same
    subset_size: int


def kid(real: np.ndarray, fake: np.ndarray, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> Kid:
    """The kernel distance of Binkowski et al. (2018): squared_mmd over random subsets, the same at every call.

    Subsets are no larger than the smaller set; if they are all of both, no chance is left to measure. Raises ValueError
    for fewer than 2 samples.
    """
    rng, size = np.random.default_rng(0), min(subset_size, len(real), len(fake))
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    values = []
    for _ in range(subsets):
        chosen = rng.choice(len(real), size, replace=False), rng.choice(len(fake), size, replace=False)
        values.append(squared_mmd(real[chosen[0]], fake[chosen[1]]))
    std = float(np.std(values)) if size < max(len(real), len(fake)) else None
    return Kid(float(np.mean(values)), std, size)


def squared_mmd(real: np.ndarray, fake: np.ndarray) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy, by the kernel (x.y / d + 1)^3 (equation 4)."""
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"needs at least 2 samples of each, has {len(real)} and {len(fake)}")

    def within(x):
        kernel = _kernel(x, x)
        return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

    return float(within(real) + within(fake) - 2 * _kernel(real, fake).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def precision_recall(real: np.ndarray, fake: np.ndarray, real_radii: np.ndarray | None = None) -> tuple[float, float]:
    """The improved precision and recall of Kynkaanniemi et al. (2019).

    Precision is the share of `fake` that lies within the k-th neighbour's distance of some real sample, k = 3; recall
    is the same with the roles exchanged. real_radii: `squared_radii(real)` where that is known. Raises ValueError for k
    samples or fewer.
    """
    k = PRECISION_NEIGHBOURS
    radii = squared_radii(real, k) if real_radii is None else real_radii
    real_radii, fake_radii = radii[:, k - 1], squared_radii(fake, k)[:, k - 1]
    precision = np.concatenate([(block <= real_radii).any(axis=1) for block in _squared_distances(fake, real)])
    recall = np.concatenate([(block <= fake_radii).any(axis=1) for block in _squared_distances(real, fake)])
    return float(precision.mean()), float(recall.mean())


def density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = DENSITY_NEIGHBOURS, real_radii: np.ndarray | None = None
) -> tuple[float, float]:
    """The density and coverage of Naeem et al. (2020).

    Density is the mean number of real samples whose k-th neighbour lies beyond a sample of `fake`, over k; coverage the
    share of real samples with one of `fake` nearer than their k-th neighbour. real_radii: `squared_radii(real)` where
    that is known. Raises ValueError for k samples or fewer.
    """
    radii = (squared_radii(real, k) if real_radii is None else real_radii)[:, k - 1]
    inside, covered = 0, np.zeros(len(real), bool)
    for block in _squared_distances(fake, real):
        within = block < radii
        inside += within.sum()
        covered |= within.any(axis=0)
    return float(inside / (k * len(fake))), float(covered.mean())


def squared_radii(x: np.ndarray, k: int = DENSITY_NEIGHBOURS) -> np.ndarray:
    """[N, k]: from each sample to its first, second, ... k-th neighbour, itself not counted."""
    if len(x) <= k:
        raise ValueError(f"needs more than {k} samples, has {len(x)}")
    nearest = [np.partition(block, k, axis=1)[:, : k + 1] for block in _squared_distances(x, x)]
    return np.sort(np.concatenate(nearest), axis=1)[:, 1:]


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """[BLOCK, M] at a time, rows of x against all of y."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    norms = np.einsum("md,md->m", y, y)
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        yield np.einsum("nd,nd->n", rows, rows)[:, None] + norms - 2 * rows @ y.T
