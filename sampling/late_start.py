"""The Gaussian late start: the exact Gaussian of noised data, at every t, from one pass (or a few) over the data.

If data have mean m and covariance S, then x_t has mean sqrt(ab) m and covariance ab S + (1 - ab) I. With S = U L U^T
found once, drawing from that Gaussian, or predicting noise as if the data were it, is two thin products at any t.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike

from core.diffusion import EpsFn, NoiseSchedule, per_image
from core.errors import UserError
from core.files import read_npz, write_npz
from core.moments import Moments
from sampling.eigenpairs import leading_eigenpairs

Batches = Iterable[np.ndarray] | Callable[[], Iterable[np.ndarray]]

EXACT_UP_TO = 4096  # the image dimension whose covariance is formed: 134 MB
BASELINES = ("afs", "isotropic", "no_history")  # `analytic_first_step`; late starts without directions, `predictions`
ARRAYS = ("mean", "eigenvectors", "eigenvalues", "residual_variance", "image_shape")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DataGaussian:
    """Mean and covariance U diag(L) U^T + r (I - U U^T) of images; what draws for a network is in its range.

    Attributes:
      mean: [d], d = H W C.
      eigenvectors: [d, k], orthonormal columns U.
      eigenvalues: [k], descending, L.
      residual_variance: scalar r, the mean variance in the d - k directions outside U.
      image_shape: (H, W, C).
    """

    mean: ArrayLike
    eigenvectors: ArrayLike
    eigenvalues: ArrayLike
    residual_variance: ArrayLike
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    @classmethod
    def fit(cls, batches: Batches, rank: int | None = None) -> "DataGaussian":
        """The Gaussian of images in batches [B,H,W,C], with `rank` leading eigenpairs.

        Up to d = EXACT_UP_TO in one pass and exactly, all pairs if rank is None. Above in `eigenpairs.PASSES` passes
        and memory for twice `rank` images: a rank must then be given, and batches be a list or a function that
        returns an iterator for each pass. The rest of the trace is spread evenly as residual variance.

        Pixels as they are stored, uint8, are summed fastest, and without rounding; `scaled` brings the result into
        the network's range.

        Raises ValueError for fewer than 2 images, shapes that are mixed or not [H,W,C], values that are not finite
        (with the batch, from 0), a rank outside 1 .. d or not below the number of images, and batches that cannot be
        read again.
        """
        stream = iter(batches() if callable(batches) else batches)
        first = next(stream, None)
        if first is None:
            raise ValueError("no images to fit a Gaussian to")
        shape, dim = first.shape[1:], math.prod(first.shape[1:])
        if len(shape) != 3:
            raise ValueError(f"images of shape {list(shape)}: they must be [H, W, C]")
        if dim <= EXACT_UP_TO:
            moments = Moments(dim)
            for vectors in _vectors(itertools.chain([first], stream), shape):
                moments.update(vectors)
            return cls.from_moments(moments, shape, rank)
        if rank is None:
            raise ValueError(f"images of dimension {dim}, above {EXACT_UP_TO}, need a rank")
        if stream is batches:
            raise ValueError(f"images of dimension {dim} are read several times: give a list, or a function")
        read = batches if callable(batches) else lambda: batches
        pairs = leading_eigenpairs(lambda: _vectors(read(), shape), dim, rank)
        return cls._of_pairs(pairs.mean, pairs.values, pairs.vectors, pairs.trace, shape)

    @classmethod
    def from_moments(
        cls, moments: Moments, image_shape: tuple[int, int, int], rank: int | None = None
    ) -> "DataGaussian":
        """The same of what `moments` has seen, all shards merged."""
        dim = moments.dim
        if rank is not None and not 1 <= rank <= min(dim, moments.count - 1):
            raise ValueError(
                f"rank={rank} must be from 1 to the image dimension {dim} and below the {moments.count} images"
            )
        covariance, leading = moments.cov, slice(None, -(rank or dim) - 1, -1)
        trace = np.trace(covariance)
        # Divide and conquer is several times as fast as what scipy takes where it is asked for some of the pairs.
        values, vectors = scipy.linalg.eigh(covariance, driver="evd", overwrite_a=True, check_finite=False)
        values = np.maximum(values[leading], 0)  # rounding can leave a null direction slightly below zero
        return cls._of_pairs(moments.mean, values, vectors[:, leading], trace, image_shape)

    @classmethod
    def _of_pairs(cls, mean, values, vectors, trace: float, image_shape: tuple[int, int, int]) -> "DataGaussian":
        outside = len(mean) - len(values)
        residual = max(trace - values.sum(), 0) / outside if outside else 0.0
        return cls(mean, np.ascontiguousarray(vectors), values, np.float64(residual), image_shape)

    @property
    def captured(self) -> float:
        """The share of the variance that lies in the eigenpairs kept, 0 .. 1."""
        inside = np.sum(self.eigenvalues)
        return float(inside / self._trace) if inside else 1.0  # images that are all the same

    @property
    def _trace(self) -> jax.Array:
        outside = len(self.mean) - len(self.eigenvalues)
        return np.sum(self.eigenvalues) + self.residual_variance * outside

    def scaled(self, scale: float, shift: float) -> "DataGaussian":
        """The Gaussian of scale x + shift for images x of this one."""
        values, residual = scale**2 * self.eigenvalues, scale**2 * self.residual_variance
        return DataGaussian(scale * self.mean + shift, self.eigenvectors, values, residual, self.image_shape)

    def isotropic(self) -> "DataGaussian":
        """The same mean and mean variance without directions: what the covariance buys is the difference."""
        dim = len(self.mean)
        return DataGaussian(self.mean, np.zeros((dim, 0)), np.zeros(0), self._trace / dim, self.image_shape)

    def sample(self, noise: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """x_t [B,H,W,C] with exactly this Gaussian's mean and covariance at alpha_bar (scalar or [B]).

        Uses the symmetric root of the covariance, so it is deterministic in noise [B,H,W,C], and for Gaussian data the
        probability-flow ODE's own map from pure noise: the same noise gives comparable images from every start.
        """
        signal, noise_variance = jnp.sqrt(alpha_bar), 1 - jnp.asarray(alpha_bar)
        return per_image(signal, noise) * self._mean_image(noise.dtype) + self._transform(
            noise, lambda variance: jnp.sqrt(signal**2 * variance + noise_variance)
        )

    def eps(self, x: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """The exact noise prediction at x [B,H,W,C] if the data were this Gaussian: -sqrt(1 - ab) times the score."""
        ab = jnp.asarray(alpha_bar)
        centred = x - per_image(jnp.sqrt(ab), x) * self._mean_image(x.dtype)
        return self._transform(centred, lambda variance: jnp.sqrt(1 - ab) / _noised(variance, ab, x.dtype))

    def predictions(self, noise: jax.Array, alpha_bar: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """x_0 and eps [B,H,W,C] as `eps` predicts them where `sample` puts noise [B,H,W,C] at a scalar alpha_bar.

        What a network would say above a late start, without asking it. Of the noise itself rather than of x_t, so that
        x_0 keeps its digits where next to nothing is left of it.
        """
        ab, dtype = jnp.asarray(alpha_bar), noise.dtype
        x0 = self._transform(noise, lambda variance: jnp.sqrt(ab) * variance / jnp.sqrt(_noised(variance, ab, dtype)))
        eps = self._transform(noise, lambda variance: jnp.sqrt((1 - ab) / _noised(variance, ab, dtype)))
        return self._mean_image(noise.dtype) + x0, eps

    def carried(self, displacement: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """What a displacement of x_t [B,H,W,C] becomes as the Gaussian's own flow takes x_t to clean data.

        Along an eigenvector of variance L it is multiplied by sqrt(L / (ab L + 1 - ab)), the ratio of the spreads.
        """
        ab, dtype = jnp.asarray(alpha_bar), displacement.dtype
        clean = jnp.finfo(dtype).tiny  # so that of clean data nothing is undone
        return self._transform(
            displacement, lambda variance: jnp.sqrt((variance + clean) / _noised(variance, ab, dtype))
        )

    def _mean_image(self, dtype: jnp.dtype) -> jax.Array:
        return jnp.asarray(self.mean, dtype).reshape(self.image_shape)

    def _transform(self, images: jax.Array, function) -> jax.Array:
        """Applies the matrix U f(L) U^T + f(r) (I - U U^T) to each image, f a function of variance."""
        flat = images.reshape(len(images), -1)
        basis = jnp.asarray(self.eigenvectors, images.dtype)
        outside = jnp.reshape(function(jnp.asarray(self.residual_variance)), (-1, 1))
        inside = function(jnp.asarray(self.eigenvalues)[:, None]).T  # [1 or B, k]
        highest = jax.lax.Precision.HIGHEST  # a TPU would otherwise round to bfloat16
        coefficients = jnp.matmul(flat, basis, precision=highest) * (inside - outside).astype(images.dtype)
        flat = outside.astype(images.dtype) * flat + jnp.matmul(coefficients, basis.T, precision=highest)
        return flat.reshape(images.shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, for `of_arrays`."""
        return {name: np.asarray(getattr(self, name)) for name in ARRAYS}

    def save(self, path: Path) -> None:
        write_npz(path, self.arrays())

    @classmethod
    def load(cls, path: Path) -> "DataGaussian":
        """Raises UserError if the file is broken or its arrays do not fit together."""
        return cls.of_arrays(read_npz(path, required=set(ARRAYS)), path)

    @classmethod
    def of_arrays(cls, stored: Mapping[str, np.ndarray], path: Path) -> "DataGaussian":
        """The same, of a file that is read already: `path` is for the errors."""
        shape = tuple(stored["image_shape"].ravel().tolist())
        dim, rank = math.prod(shape), stored["eigenvalues"].size
        shapes = [stored[name].shape for name in ARRAYS]
        if len(shape) != 3 or shapes != [(dim,), (dim, rank), (rank,), (), (3,)]:
            raise UserError(f"{path}: arrays of shapes {shapes} are no Gaussian of images of shape {shape}")
        if not all(np.isfinite(stored[name]).all() for name in ARRAYS):
            raise UserError(f"{path}: holds NaN or infinity")
        return cls(*(stored[name] for name in ARRAYS[:-1]), image_shape=shape)


def _noised(variance: jax.Array, alpha_bar: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The variance that a direction's becomes at alpha_bar; not 0 for clean data that do not vary along it."""
    return alpha_bar * variance + (1 - alpha_bar) + jnp.finfo(dtype).tiny


def _vectors(batches: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Batches [B, *shape] as [B, d]. Raises ValueError for the first that has another shape or is not finite."""
    for i, batch in enumerate(batches):
        if batch.shape[1:] != shape:
            raise ValueError(f"batch {i}: images of shape {list(batch.shape[1:])} after images of shape {list(shape)}")
        if not np.isfinite(batch).all():
            raise ValueError(f"batch {i} holds NaN or infinity")
        yield batch.reshape(len(batch), math.prod(shape))


def analytic_first_step(eps_fn: EpsFn, schedule: NoiseSchedule, t_first: ArrayLike) -> EpsFn:
    """eps_fn, but at times from t_first on what unit Gaussian data would have it be, sigma_t x, without a call.

    AFS, Dockhorn et al. (2022, GENIE, arXiv 2210.05475): with t_first the first time of a grid it saves one
    evaluation. All images of a batch must share their time, as they do in `sample`.
    """

    def first_step_free(x, t):
        return jax.lax.cond(t[0] >= t_first, lambda x, t: per_image(schedule.sigma(t), x) * x, eps_fn, x, t)

    return first_step_free
