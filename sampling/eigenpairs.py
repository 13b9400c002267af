"""Leading eigenpairs of a covariance too large to form: randomised subspace iteration over a stream of vectors."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

PASSES = 6  # over the data: each but the last turns the subspace towards the leading directions
OVERSAMPLING = 80  # directions carried along beyond those asked for: with 64 an eigenvalue was 1% off
ROWS = 256  # vectors converted to float64 at a time: with fewer, memory is what the products wait for

Vectors = Callable[[], Iterable[np.ndarray]]
"""Called once a pass, it gives the same vectors [B, d] in batches, the same number of times."""


class Eigenpairs(NamedTuple):
    count: int
    mean: np.ndarray  # [d]
    values: np.ndarray  # [k], descending
    vectors: np.ndarray  # [d, k], orthonormal columns
    trace: float  # of the whole covariance, normalised by N - 1


def leading_eigenpairs(vectors: Vectors, dim: int, rank: int) -> Eigenpairs:
    """The `rank` leading eigenpairs of the covariance of vectors, in PASSES passes, the trace and the mean exactly.

    Holds two blocks of rank + OVERSAMPLING float64 vectors of length d, a third at the end, and ROWS vectors: Halko,
    Martinsson and Tropp (2011, arXiv 0909.4061), algorithms 4.4 and 5.3, on the covariance. Raises ValueError for a
    rank outside 1 .. min(d, N - 1), another length, or values that are not finite.
    """
    if not 1 <= rank <= dim:
        raise ValueError(f"rank={rank} must be from 1 to the image dimension {dim}")
    block = np.random.default_rng(0).standard_normal((min(rank + OVERSAMPLING, dim), dim)).T  # LAPACK's order
    shift = None
    for _ in range(PASSES):
        basis, _ = scipy.linalg.qr(block, mode="economic", overwrite_a=True, check_finite=False)
        count, shift, trace, block = _covariance_times(basis, vectors, shift)
        if rank > count - 1:
            raise ValueError(f"rank={rank} must be below the number of images, {count}")
    values, turns = scipy.linalg.eigh(basis.T @ block)
    leading = slice(None, -rank - 1, -1)
    return Eigenpairs(count, shift, np.maximum(values[leading], 0), basis @ turns[:, leading], trace)


def _covariance_times(
    basis: np.ndarray, vectors: Vectors, shift: np.ndarray | None
) -> tuple[int, np.ndarray, float, np.ndarray]:
    """One pass: (count, mean, trace of the covariance, covariance @ basis).

    Sums are taken about `shift`, the first rows' mean if None, so that a mean far from zero costs no digits.
    """
    count, total, squares, product = 0, np.zeros(len(basis)), 0.0, np.zeros(basis.shape, order="F")
    for rows in _rows(vectors(), len(basis)):
        shift = rows.mean(axis=0, dtype=np.float64) if shift is None else shift
        centred = rows - shift
        count += len(rows)
        total += centred.sum(axis=0)
        squares += np.einsum("ij,ij", centred, centred)
        product = scipy.linalg.blas.dgemm(1.0, centred.T, centred @ basis, 1.0, product, overwrite_c=True)
    if count < 2:
        raise ValueError(f"needs at least 2 images, has {count}")
    offset = total / count
    product = scipy.linalg.blas.dger(-count, offset, offset @ basis, a=product, overwrite_a=True)
    product /= count - 1
    return count, shift + offset, (squares - count * offset @ offset) / (count - 1), product


def _rows(batches: Iterable[np.ndarray], dim: int) -> Iterator[np.ndarray]:
    for batch in batches:
        if batch.ndim != 2 or batch.shape[1] != dim:
            raise ValueError(f"expected vectors [B, {dim}], got {list(batch.shape)}")
        for start in range(0, len(batch), ROWS):
            rows = batch[start : start + ROWS]
            if not np.isfinite(rows).all():
                raise ValueError("the vectors hold NaN or infinity")
            yield rows
