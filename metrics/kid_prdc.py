"""Sample-based metrics: KID, precision, recall, density and coverage.

They compare the features of real images with the features of generated images ("fake"), in float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SUBSETS = 100  # subsets over which the KID is averaged
SUBSET_SIZE = 1000  # samples per subset
PRECISION_NEIGHBOURS = 3  # k of precision and recall
DENSITY_NEIGHBOURS = 5  # k of density and coverage
BLOCK = 1000  # rows of a distance matrix that are computed at a time

RealFeatures = Float[np.ndarray, "real dim"]
FakeFeatures = Float[np.ndarray, "fake dim"]
Radii = Float[np.ndarray, "real neighbours"]
"""Squared distances from each real sample to its nearest neighbours, see `squared_radii`."""


class Kid(NamedTuple):
    """A kernel Inception distance.

    Attributes:
      mean: the mean over the subsets.
      std: the standard deviation over the subsets; None if every subset contains all samples of both sets.
      subset_size: the number of samples in a subset.
    """

    mean: float
    std: float | None
    subset_size: int


def kid(real: RealFeatures, fake: FakeFeatures, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE) -> Kid:
    """The kernel Inception distance (Binkowski et al. 2018, arXiv 1801.01401): `squared_mmd` over random subsets.

    Subsets are drawn with a fixed seed, and are not larger than the smaller set. Raises ValueError for fewer than 2
    samples.
    """
    rng = np.random.default_rng(0)
    size = min(subset_size, len(real), len(fake))
    real = np.asarray(real, np.float64)
    fake = np.asarray(fake, np.float64)
    values = []
    for _ in range(subsets):
        real_rows = rng.choice(len(real), size, replace=False)
        fake_rows = rng.choice(len(fake), size, replace=False)
        values.append(squared_mmd(real[real_rows], fake[fake_rows]))
    std = float(np.std(values)) if size < max(len(real), len(fake)) else None
    return Kid(float(np.mean(values)), std, size)


def squared_mmd(real: RealFeatures, fake: FakeFeatures) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy (Binkowski et al. 2018, equation 4).

    The kernel is (x.y / dim + 1)^3. It is computed in the precision of the features. Raises ValueError for fewer than 2
    samples.
    """
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"needs at least 2 samples of each, has {len(real)} and {len(fake)}")

    def within(x: Float[np.ndarray, "n dim"]) -> np.floating:
        kernel = _kernel(x, x)
        return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

    return float(within(real) + within(fake) - 2 * _kernel(real, fake).mean())


def _kernel(x: Float[np.ndarray, "n dim"], y: Float[np.ndarray, "m dim"]) -> Float[np.ndarray, "n m"]:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def precision_recall(real: RealFeatures, fake: FakeFeatures, real_radii: Radii | None = None) -> tuple[float, float]:
    """The improved precision and recall of Kynkaanniemi et al. (2019, arXiv 1904.06991), for k = 3 neighbours.

    The ball of a real sample reaches to its k-th nearest real neighbour. Precision is the share of fake samples that
    are in at least one ball. Recall is the same with real and fake exchanged. real_radii: `squared_radii(real)`, if it
    is already known. Raises ValueError for k samples or fewer.
    """
    k = PRECISION_NEIGHBOURS
    if real_radii is None:
        real_radii = squared_radii(real, k)
    fake_radii = squared_radii(fake, k)
    return _covered_share(fake, real, real_radii[:, k - 1]), _covered_share(real, fake, fake_radii[:, k - 1])


def _covered_share(
    x: Float[np.ndarray, "n dim"], centres: Float[np.ndarray, "m dim"], radii: Float[np.ndarray, "m"]
) -> float:
    """The share of rows of x inside at least one of the balls with these centres and squared radii."""
    inside = [(block <= radii).any(axis=1) for block in _squared_distances(x, centres)]
    return float(np.concatenate(inside).mean())


def density_coverage(
    real: RealFeatures, fake: FakeFeatures, k: int = DENSITY_NEIGHBOURS, real_radii: Radii | None = None
) -> tuple[float, float]:
    """The density and coverage of Naeem et al. (2020, arXiv 2002.09797).

    The ball of a real sample reaches to its k-th nearest real neighbour. Density is the mean number of balls that
    contain a fake sample, divided by k. Coverage is the share of balls that contain at least one fake sample.
    real_radii: `squared_radii(real)`, if it is already known. Raises ValueError for k samples or fewer.
    """
    if real_radii is None:
        real_radii = squared_radii(real, k)
    radii = real_radii[:, k - 1]
    inside = 0
    covered = np.zeros(len(real), bool)
    for block in _squared_distances(fake, real):
        within = block < radii
        inside += within.sum()
        covered |= within.any(axis=0)
    return float(inside / (k * len(fake))), float(covered.mean())


def squared_radii(x: Float[np.ndarray, "n dim"], k: int = DENSITY_NEIGHBOURS) -> Float[np.ndarray, "n {k}"]:
    """Squared distances from each sample to its k nearest other samples, in ascending order.

    Raises ValueError for k samples or fewer.
    """
    if len(x) <= k:
        raise ValueError(f"needs more than {k} samples, has {len(x)}")
    nearest = [np.partition(block, k, axis=1)[:, : k + 1] for block in _squared_distances(x, x)]
    return np.sort(np.concatenate(nearest), axis=1)[:, 1:]


def _squared_distances(
    x: Float[np.ndarray, "n dim"], y: Float[np.ndarray, "m dim"]
) -> Iterator[Float[np.ndarray, "block m"]]:
    """Yields the matrix of squared distances between the rows of x and the rows of y, BLOCK rows at a time."""
    x = np.asarray(x, np.float64)
    y = np.asarray(y, np.float64)
    norms = np.einsum("md,md->m", y, y)
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        yield np.einsum("nd,nd->n", rows, rows)[:, None] + norms - 2 * rows @ y.T
