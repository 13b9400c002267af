"""Mean and covariance of a stream of vectors, in float64: what the FID and the late start both rest on."""

from collections.abc import Mapping

import numpy as np

import parallel


class Moments:
    """Accumulates N vectors of length d in O(d^2) memory; the same result for any batch size, order or sharding.

    Sums are taken about the first batch's mean, so that a mean far from zero costs no digits of the covariance.
    """

    def __init__(self, dim: int):
        self.count = 0
        self._shift = np.zeros(dim)
        self._sum = np.zeros(dim)
        self._outer = np.zeros((dim, dim))

    @property
    def dim(self) -> int:
        return len(self._sum)

    def update(self, vectors: np.ndarray) -> "Moments":
        """Adds vectors [B, d]. Raises ValueError for another shape or a value that is not finite."""
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"expected vectors [B, {self.dim}], got {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError("the vectors hold NaN or infinity")
        if self.count == 0 and len(vectors):
            self._shift = vectors.mean(axis=0)
        centred = vectors - self._shift
        self.count += len(vectors)
        self._sum += centred.sum(axis=0)
        self._outer += centred.T @ centred
        return self

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
        return (self._outer - np.outer(self._sum, self._sum) / self.count) / (self.count - 1)

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
