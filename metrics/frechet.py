"""Fréchet distance between the moments of features, with a jackknife error and a limit for infinitely many samples."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from core.moments import Moments
from metrics import kid_prdc
from metrics.tally import merged


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson and Landau (1982); with Inception's features, the FID.

    means [d], covariances [d, d]; computed in float64. Raises ValueError for shapes that do not fit or values that
    are not finite; `Moments` raises it for fewer than 2 samples.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(array, np.float64) for array in (mean1, cov1, mean2, cov2))
    shapes = [array.shape for array in (mean1, cov1, mean2, cov2)]
    dim = mean1.size
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"moments of shapes {shapes} do not fit together")
    if not all(np.isfinite(array).all() for array in (mean1, cov1, mean2, cov2)):
        raise ValueError("the moments hold NaN or infinity")
    return _distance(mean1, _factor(cov1), mean2, cov2)


def _factor(cov: np.ndarray) -> np.ndarray:
    """F with F F^T = cov."""
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:  # singular: fewer samples than dimensions, or a dead feature
        values, vectors = scipy.linalg.eigh(cov)
        return vectors * np.sqrt(np.maximum(values, 0))


def _distance(mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """With C1 = F F^T, tr (C1 C2)^(1/2) sums the roots of the eigenvalues of the symmetric F^T C2 F."""
    eigenvalues = scipy.linalg.eigvalsh(factor1.T @ cov2 @ factor1)
    root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.sum(factor1**2) + np.trace(cov2) - 2 * root)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What samples are scored against: the moments of a split's features, and what is known of the split."""

    mean: np.ndarray  # [d]
    cov: np.ndarray  # [d, d]
    digest: str  # SHA-256 of the moments
    description: str
    features: np.ndarray | None = None  # [at most tallies.RESERVOIR, d], spread evenly over the split
    label_counts: np.ndarray | None = None  # [K]

    @functools.cached_property
    def squared_radii(self) -> np.ndarray:
        """`fidelity.squared_radii` of the features: dearer than drawing few images, and the same for every run."""
        return kid_prdc.squared_radii(self.features)


class Distance(NamedTuple):
    value: float
    error: float | None  # one standard error, from the choice of samples; the reference counts as exact
    at_infinity: float | None  # what the value would be for infinitely many samples, with the same standard error


def distance(groups: Sequence[Moments], reference: Reference) -> Distance:
    """The Fréchet distance of all groups together, its standard error, and its limit for infinitely many samples.

    The error is the grouped jackknife's: how far the distance moves as each group in turn is left out. The limit is
    Chong and Forsyth's (2020): the bias falls as 1/N, so a line in 1/N meets the axis there. Here it passes through the
    whole and the mean of the halves, each of half the groups, beginning at each group in turn. Since both depend on a
    single sample alike, to first order in 1/N, the error is that of the limit as well.

    The limit is None where a half has fewer than 2 samples a feature, since the line is then bent; both are None for
    groups of fewer than 2. Warns where all groups together have fewer samples than features.
    """
    whole = merged(groups)
    if whole.count < whole.dim:
        warnings.warn(
            f"{whole.count} samples for {whole.dim} features: the covariance is singular, and the distance far too "
            f"large to compare; draw at least {whole.dim}, better {10 * whole.dim}",
            stacklevel=2,
        )
    factor = _factor(reference.cov)  # once for all that is left out below

    def to_reference(moments: Moments) -> float:
        return _distance(reference.mean, factor, moments.mean, moments.cov)

    value = to_reference(whole)
    if len(groups) < 2 or min(group.count for group in groups) < 2:
        return Distance(value, None, None)
    rests = [to_reference(merged([*groups[:k], *groups[k + 1 :]])) for k in range(len(groups))]
    error = float(np.sqrt((len(groups) - 1) * np.var(rests)))  # Efron and Stein (1981)
    if whole.count < 4 * whole.dim:
        return Distance(value, error, None)
    halves = [merged(np.roll(groups, -k)[: len(groups) // 2]) for k in range(len(groups))]
    size, mean = (np.mean(values) for values in zip(*((h.count, to_reference(h)) for h in halves), strict=True))
    return Distance(value, error, float((whole.count * value - size * mean) / (whole.count - size)))
