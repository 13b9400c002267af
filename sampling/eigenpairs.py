"""Leading eigenpairs of a covariance that does not fit in memory, by randomised subspace iteration over a stream."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Shaped

PASSES = 6  # passes over the data; all but the last turn the subspace towards the leading eigenvectors
OVERSAMPLING = 80  # dimensions of the subspace in addition to the rank; with 64, an eigenvalue was wrong by 1%
ROWS = 256  # vectors per matrix product; with fewer, memory bandwidth limits the product

Batches = Callable[[], Iterable[Shaped[np.ndarray, "..."]]]
"""Called once per pass. Returns batches with one vector per row. Every call must return the same vectors."""


class Eigenpairs(NamedTuple):
    """The mean, and the leading eigenpairs and the trace of the covariance, which is normalised by count - 1."""

    count: int
    mean: Float[np.ndarray, "dim"]
    values: Float[np.ndarray, "rank"]  # descending
    vectors: Float[np.ndarray, "dim rank"]  # orthonormal columns
    trace: float  # the sum of all eigenvalues


def leading_eigenpairs(vectors: Batches, dim: int, rank: int) -> Eigenpairs:
    """Computes the `rank` leading eigenpairs of the covariance of vectors of length `dim`, in PASSES passes.

    The method is algorithms 4.4 and 5.3 of Halko, Martinsson and Tropp (2011, arXiv 0909.4061), applied to the
    covariance. The mean and the trace are exact. The computation needs memory for two blocks of rank + OVERSAMPLING
    float64 vectors (three at the end) and for ROWS vectors. Raises ValueError for a rank outside
    1 .. min(dim, count - 1), vectors of another length, NaN or infinity.
    """
    if not 1 <= rank <= dim:
        raise ValueError(f"rank={rank} must be from 1 to the image dimension {dim}")
    size = min(rank + OVERSAMPLING, dim)
    block = np.random.default_rng(0).standard_normal((size, dim)).T  # column-major, as LAPACK needs it
    mean = None
    for _ in range(PASSES):
        basis, _ = scipy.linalg.qr(block, mode="economic", overwrite_a=True, check_finite=False)
        count, mean, trace, block = _covariance_times(basis, vectors, mean)
        if rank > count - 1:
            raise ValueError(f"rank={rank} must be below the number of images, {count}")
    values, rotation = scipy.linalg.eigh(basis.T @ block)
    leading = slice(None, -rank - 1, -1)
    return Eigenpairs(
        count=count,
        mean=mean,
        values=np.maximum(values[leading], 0),
        vectors=basis @ rotation[:, leading],
        trace=trace,
    )


def _covariance_times(
    basis: Float[np.ndarray, "dim size"], vectors: Batches, shift: Float[np.ndarray, "dim"] | None
) -> tuple[int, Float[np.ndarray, "dim"], float, Float[np.ndarray, "dim size"]]:
    """Returns (count, mean, trace of the covariance, covariance @ basis) after one pass over the vectors.

    The sums are relative to `shift`, or to the mean of the first rows if `shift` is None, so that a mean far from zero
    causes no loss of precision.
    """
    count = 0
    total = np.zeros(len(basis))
    squares = 0.0
    product = np.zeros(basis.shape, order="F")
    for rows in _rows(vectors(), len(basis)):
        shift = rows.mean(axis=0, dtype=np.float64) if shift is None else shift
        centred = rows - shift
        count += len(rows)
        total += centred.sum(axis=0)
        squares += np.einsum("ij,ij", centred, centred)
        product = scipy.linalg.blas.dgemm(
            alpha=1.0, a=centred.T, b=centred @ basis, beta=1.0, c=product, overwrite_c=True
        )
    if count < 2:
        raise ValueError(f"needs at least 2 images, has {count}")
    offset = total / count
    product = scipy.linalg.blas.dger(alpha=-count, x=offset, y=offset @ basis, a=product, overwrite_a=True)
    product /= count - 1
    trace = float(squares - count * offset @ offset) / (count - 1)
    return count, shift + offset, trace, product


def _rows(batches: Iterable[Shaped[np.ndarray, "..."]], dim: int) -> Iterator[Shaped[np.ndarray, "rows dim"]]:
    """Yields the vectors, at most ROWS at a time, after checking them."""
    for batch in batches:
        if batch.ndim != 2 or batch.shape[1] != dim:
            raise ValueError(f"expected vectors [B, {dim}], got {list(batch.shape)}")
        for start in range(0, len(batch), ROWS):
            rows = batch[start : start + ROWS]
            if not np.isfinite(rows).all():
                raise ValueError("the vectors contain NaN or infinity")
            yield rows
