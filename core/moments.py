"""Mean and covariance of a stream of vectors, in float64: what the FID and the late start both rest on."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import scipy.linalg

from core import parallel

MIDDLE = 128.0  # of uint8's range
EXACT_ROWS = 1024  # of uint8 less MIDDLE: their products sum to 2^24 at most, and float32 has every integer up to that
FAST_ROWS = 256  # OpenBLAS takes a tenth longer for four times as many at once


class Moments:
    """Accumulates N vectors of length d in O(d^2) memory; the same result for any batch size, order or sharding.

    Sums are taken about the first batch's mean, or about MIDDLE where that batch is uint8, so that a mean far from
    zero costs no digits of the covariance. Sums of uint8 about MIDDLE are not rounded at all.
    """

    def __init__(self, dim: int):
        self.count = 0
        self._shift = np.zeros(dim)
        self._sum = np.zeros(dim)
        self._outer = np.zeros((dim, dim))  # its lower triangle; what lies above is not read

    @property
    def dim(self) -> int:
        return len(self._sum)

    def update(self, vectors: np.ndarray) -> "Moments":
        """Adds vectors [B, d]. Raises ValueError for another shape or a value that is not finite."""
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

    def _add_exactly(self, pixels: np.ndarray) -> None:
        """At most EXACT_ROWS of uint8: float32 is twice as fast as float64, and here as exact."""
        centred = pixels - np.float32(MIDDLE)
        self._sum += centred.sum(axis=0, dtype=np.float64)
        for start in range(0, len(pixels), FAST_ROWS):
            rows, goes_on = centred[start : start + FAST_ROWS], float(start > 0)
            scipy.linalg.blas.ssyrk(1.0, rows.T, goes_on, self._product, overwrite_c=True)
        self._outer += self._product.T

    @cached_property
    def _product(self) -> np.ndarray:
        """Where the products of a batch go: new memory each time would take longer than the sum."""
        return np.zeros((self.dim, self.dim), np.float32, order="F")

    def merge(self, other: "Moments") -> "Moments":
        """Adds what another accumulator has seen."""
        if other.count and not self.count:
            self._shift = other._shift
        offset = other._shift - self._shift
        cross = np.outer(offset, other._sum)
        self._outer += other._outer + cross + cross.T + other.count * np.outer(offset, offset)
        self._sum += other._sum + other.count * offset
        self.count += other.count
        return self

    def of_all_processes(self) -> "Moments":
        """What the accumulators of all processes have seen together; every process must ask."""
        merged = Moments(self.dim)
        parts = [parallel.gather(part) for part in (self.count, self._shift, self._sum, self._outer)]
        for count, shift, total, outer in zip(*parts, strict=True):
            other = Moments(self.dim)
            other.count, other._shift, other._sum, other._outer = int(count), shift, total, outer
            merged.merge(other)
        return merged

    @property
    def mean(self) -> np.ndarray:
        """[d]."""
        self._require(1)
        return self._shift + self._sum / self.count

    @property
    def cov(self) -> np.ndarray:
        """[d, d], normalised by N - 1."""
        self._require(2)
        cov = scipy.linalg.blas.dsyr(-1 / self.count, self._sum, a=self._outer.T)  # whose upper triangle it is there
        cov /= self.count - 1
        for i in range(self.dim):
            cov[i + 1 :, i] = cov[i, i + 1 :]
        return cov

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, for `of_arrays`."""
        return {"count": np.asarray(self.count), "shift": self._shift, "sum": self._sum, "outer": self._outer}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        moments = cls(len(arrays["shift"]))
        moments.count = int(arrays["count"])
        moments._shift, moments._sum, moments._outer = arrays["shift"], arrays["sum"], arrays["outer"]
        return moments

    def _require(self, least: int) -> None:
        if self.count < least:
            raise ValueError(f"needs at least {least} vectors, has {self.count}")
