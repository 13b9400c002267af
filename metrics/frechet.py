"""Fréchet distance between the moments of features, with a jackknife error and a limit for infinitely many samples."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int, Real

from core.moments import Moments
from core.shapes import AnyArray
from metrics import kid_prdc
from metrics.tally import merged

Mean = Real[np.ndarray, "dim"]

Covariance = Real[np.ndarray, "dim dim"]


def frechet_distance(mean1: AnyArray, cov1: AnyArray, mean2: AnyArray, cov2: AnyArray) -> float:
    """The Fréchet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) between Gaussians (Dowson and Landau 1982).

    With the moments of Inception features it is the FID. Means have shape [dim], and covariances have shape [dim, dim].
    The computation is in float64. Raises ValueError for shapes that do not fit together and for values that are not
    finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(array, np.float64) for array in (mean1, cov1, mean2, cov2))
    shapes = [array.shape for array in (mean1, cov1, mean2, cov2)]
    dim = mean1.size
    if shapes != [(dim,), (dim, dim), (dim,), (dim, dim)]:
        raise ValueError(f"moments of shapes {shapes} do not fit together")
    if not all(np.isfinite(array).all() for array in (mean1, cov1, mean2, cov2)):
        raise ValueError("the moments hold NaN or infinity")
    return _distance(mean1=mean1, factor1=_factor(cov1), mean2=mean2, cov2=cov2)


def _factor(cov: Covariance) -> Float[np.ndarray, "dim dim"]:
    """A matrix F with F F^T = cov."""
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:  # singular: fewer samples than dimensions, or a constant feature
        values, vectors = scipy.linalg.eigh(cov)
        return vectors * np.sqrt(np.maximum(values, 0))


def _distance(mean1: Mean, factor1: Float[np.ndarray, "dim dim"], mean2: Mean, cov2: Covariance) -> float:
    """The Fréchet distance between N(mean1, F F^T), where F is factor1, and N(mean2, cov2).

    With C1 = F F^T, tr (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of F^T C2 F, which is symmetric.
    """
    eigenvalues = scipy.linalg.eigvalsh(factor1.T @ cov2 @ factor1)
    root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.sum(factor1**2) + np.trace(cov2) - 2 * root)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The reference set that samples are scored against. `features` and `label_counts` are None if they are not known.

    Attributes:
      mean: the mean of the features.
      cov: the covariance of the features.
      digest: the SHA-256 of the moments.
      description: one line about the images.
      features: the features of at most tally.RESERVOIR images, evenly spaced over the set.
      label_counts: the number of images with each label.
    """

    mean: Mean
    cov: Covariance
    digest: str
    description: str
    features: Float[np.ndarray, "kept dim"] | None = None
    label_counts: Int[np.ndarray, "labels"] | None = None

    @functools.cached_property
    def squared_radii(self) -> Float[np.ndarray, "kept neighbours"]:
        """The `kid_prdc.squared_radii` of the features. Cached, because they cost more than a batch of samples."""
        return kid_prdc.squared_radii(self.features)


class Distance(NamedTuple):
    """A Fréchet distance.

    Attributes:
      value: the distance between the samples and the reference.
      error: one standard error. It accounts for the randomness of the samples, but treats the reference as fixed.
      at_infinity: the limit of the distance for infinitely many samples, which also has the standard error `error`.
    """

    value: float
    error: float | None
    at_infinity: float | None


def distance(groups: Sequence[Moments], reference: Reference) -> Distance:
    """The Fréchet distance of the samples in all groups, its standard error, and its limit for infinitely many samples.

    groups: moments of disjoint parts of the samples, of nearly equal size. The error comes from a grouped jackknife,
    which leaves out one group at a time (Efron and Stein 1981). The bias of the distance falls as 1/N (Chong and
    Forsyth 2020, arXiv 1911.07023), so the limit is extrapolated from the distance of all samples and the mean distance
    of halves of the samples. To first order in 1/N, distance and limit have the same standard error.

    error and at_infinity are None if there are fewer than two groups or a group has fewer than 2 samples. at_infinity
    is also None if a half has fewer than 2 samples per feature, because the bias is then not linear in 1/N. Warns if
    there are fewer samples than features.
    """
    whole = merged(groups)
    if whole.count < whole.dim:
        warnings.warn(
            f"{whole.count} samples for {whole.dim} features: the covariance is singular, and the distance is far too "
            f"large to be compared; draw at least {whole.dim} samples, preferably {10 * whole.dim}",
            stacklevel=2,
        )
    factor = _factor(reference.cov)  # computed once for all distances below

    def to_reference(moments: Moments) -> float:
        return _distance(mean1=reference.mean, factor1=factor, mean2=moments.mean, cov2=moments.cov)

    value = to_reference(whole)
    if len(groups) < 2 or min(group.count for group in groups) < 2:
        return Distance(value, error=None, at_infinity=None)
    rests = [to_reference(merged([*groups[:k], *groups[k + 1 :]])) for k in range(len(groups))]
    error = float(np.sqrt((len(groups) - 1) * np.var(rests)))
    if whole.count < 4 * whole.dim:
        return Distance(value, error, at_infinity=None)
    return Distance(value, error, _limit(groups, to_reference, value=value, count=whole.count))


def _limit(groups: Sequence[Moments], to_reference: Callable[[Moments], float], value: float, count: int) -> float:
    """The distance extrapolated to infinitely many samples, by a line in 1/N through two points.

    One point is the distance `value` of all `count` samples. The other is the mean distance of the halves that consist
    of consecutive groups: half of the groups, starting from each group in cyclic order.
    """
    halves = [merged([*groups[k:], *groups[:k]][: len(groups) // 2]) for k in range(len(groups))]
    half_count = np.mean([half.count for half in halves])
    half_value = np.mean([to_reference(half) for half in halves])
    return float((count * value - half_count * half_value) / (count - half_count))
