"""Mean and covariance of a stream of vectors, in float64, for the FID and the Gaussian late start."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import scipy.linalg
from jaxtyping import Float, Shaped, UInt8

from core import parallel

MIDDLE = 128.0  # the middle of uint8's range
EXACT_ROWS = 1024  # the sum of this many products of uint8 minus MIDDLE is at most 2^24, so it is exact in float32
FAST_ROWS = 256  # rows per BLAS call; with 1,024 rows OpenBLAS takes 10% longer


class Moments:
    """Accumulates the count, mean and covariance of vectors of length `dim` in O(dim^2) memory.

    Up to rounding, the result does not depend on batch sizes, on order, or on how vectors are divided among processes.
    The mean of the first batch (or MIDDLE, if that batch is uint8) is subtracted from all vectors before they are
    summed, so a mean far from zero does not reduce the precision of the covariance. Sums of uint8 minus MIDDLE are
    exact.

    Attributes:
      count: the number of vectors so far.
    """

    def __init__(self, dim: int):
        self.count = 0
        self._shift = np.zeros(dim)
        self._sum = np.zeros(dim)
        self._outer = np.zeros((dim, dim))  # only the lower triangle is read

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return len(self._sum)

    def update(self, vectors: Shaped[np.ndarray, "..."]) -> "Moments":
        """Adds vectors, one per row. Raises ValueError for a shape other than [batch, dim], NaN or infinity."""
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"expected vectors [B, {self.dim}], got {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError("the vectors hold NaN or infinity")
        pixels = vectors.dtype == np.uint8
        if self.count == 0 and len(vectors):
            self._shift = np.full(self.dim, MIDDLE) if pixels else vectors.mean(axis=0, dtype=np.float64)
        if pixels and (self._shift == MIDDLE).all():
            for start in range(0, len(vectors), EXACT_ROWS):
                self._add_exactly(vectors[start : start + EXACT_ROWS])
        else:
            centred = vectors - self._shift
            self._sum += centred.sum(axis=0)
            self._outer += centred.T @ centred
        self.count += len(vectors)
        return self

    def _add_exactly(self, pixels: UInt8[np.ndarray, "batch dim"]) -> None:
        """Adds at most EXACT_ROWS rows. Their float32 products are exact, and twice as fast as float64 products."""
        centred = pixels - np.float32(MIDDLE)
        self._sum += centred.sum(axis=0, dtype=np.float64)
        for start in range(0, len(pixels), FAST_ROWS):
            rows = centred[start : start + FAST_ROWS]
            beta = 1.0 if start > 0 else 0.0  # the first call overwrites the product, the others add to it
            scipy.linalg.blas.ssyrk(alpha=1.0, a=rows.T, beta=beta, c=self._product, overwrite_c=True)
        self._outer += self._product.T

    @cached_property
    def _product(self) -> Float[np.ndarray, "dim dim"]:
        """A buffer for the products of a batch; to allocate a new one each time would take longer than the sum."""
        return np.zeros((self.dim, self.dim), np.float32, order="F")

    def merge(self, other: "Moments") -> "Moments":
        """Adds the vectors of another accumulator."""
        if other.count and not self.count:
            self._shift = other._shift
        offset = other._shift - self._shift
        cross = np.outer(offset, other._sum)
        self._outer += other._outer + cross + cross.T + other.count * np.outer(offset, offset)
        self._sum += other._sum + other.count * offset
        self.count += other.count
        return self

    def of_all_processes(self) -> "Moments":
        """The moments of the vectors of all processes. Every process must call this."""
        merged = Moments(self.dim)
        parts = [parallel.gather(part) for part in (self.count, self._shift, self._sum, self._outer)]
        for count, shift, total, outer in zip(*parts, strict=True):
            other = Moments(self.dim)
            other.count = int(count)
            other._shift = shift
            other._sum = total
            other._outer = outer
            merged.merge(other)
        return merged

    @property
    def mean(self) -> Float[np.ndarray, "dim"]:
        """The mean. Raises ValueError if there are no vectors."""
        self._require(1)
        return self._shift + self._sum / self.count

    @property
    def cov(self) -> Float[np.ndarray, "dim dim"]:
        """The covariance, normalised by count - 1. Raises ValueError for fewer than two vectors."""
        self._require(2)
        cov = scipy.linalg.blas.dsyr(-1 / self.count, self._sum, a=self._outer.T)  # reads the upper triangle of a
        cov /= self.count - 1
        for i in range(self.dim):
            cov[i + 1 :, i] = cov[i, i + 1 :]
        return cov

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """The state as named arrays; `of_arrays` is the inverse."""
        return {"count": np.asarray(self.count), "shift": self._shift, "sum": self._sum, "outer": self._outer}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> "Moments":
        """Rebuilds the accumulator from the result of `arrays`."""
        moments = cls(len(arrays["shift"]))
        moments.count = int(arrays["count"])
        moments._shift = arrays["shift"]
        moments._sum = arrays["sum"]
        moments._outer = arrays["outer"]
        return moments

    def _require(self, least: int) -> None:
        if self.count < least:
            raise ValueError(f"needs at least {least} vectors, has {self.count}")
