"""The Gaussian late start: the Gaussian with the mean and covariance of the noised data, in closed form for every t.

If the data have mean m and covariance S, then x_t has mean sqrt(ab) m and covariance ab S + (1 - ab) I. One
eigendecomposition S = U L U^T, from one pass or a few passes over the data, therefore serves all t: sampling and the
exact noise prediction of this Gaussian take two products with U each.
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

from core.diffusion import Denoiser, per_image
from core.errors import UserError
from core.files import read_npz, write_npz
from core.moments import Moments
from core.shapes import Images, ImageShape
from sampling.eigenpairs import leading_eigenpairs

Batches = Iterable[np.ndarray] | Callable[[], Iterable[np.ndarray]]

EXACT_UP_TO = 4096  # the largest image dimension whose covariance is formed, in 134 MB
# Alternatives that a late start is compared with: `analytic_first_step`, `DataGaussian.isotropic`, and a late start
# without a history for multistep solvers.
BASELINES = ("afs", "isotropic", "no_history")
ARRAYS = ("mean", "eigenvectors", "eigenvalues", "residual_variance", "image_shape")


def forms_covariance(dim: int) -> bool:
    """Whether the covariance of images of this dimension is formed; if not, a rank is needed."""
    return dim <= EXACT_UP_TO


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DataGaussian:
    """A Gaussian with covariance U diag(L) U^T + r (I - U U^T), fitted to images.

    A Gaussian that draws starts for a network is in the network's range.

    Attributes:
      mean: [d] with d = height * width * channels.
      eigenvectors: U of shape [d, k], orthonormal columns.
      eigenvalues: L of shape [k], descending.
      residual_variance: the scalar r, the mean variance in the d - k directions outside U.
      image_shape: (height, width, channels).
    """

    mean: ArrayLike
    eigenvectors: ArrayLike
    eigenvalues: ArrayLike
    residual_variance: ArrayLike
    image_shape: ImageShape = dataclasses.field(metadata={"static": True})

    @classmethod
    def fit(cls, batches: Batches, rank: int | None = None) -> "DataGaussian":
        """The Gaussian of images in batches of shape [batch, height, width, channels], with `rank` eigenpairs.

        Up to d = EXACT_UP_TO the covariance is formed in one pass; without a rank all eigenpairs are kept. Above,
        `eigenpairs.leading_eigenpairs` takes several passes and memory for about 2 * rank images: a rank is then
        required, and batches must be a list or a function that returns an iterator for each pass. The rest of the
        trace becomes the residual variance.

        uint8 pixels are summed fastest and without rounding; `scaled` converts the result to the network's range.

        Raises ValueError for fewer than 2 images, images of different shapes or not [H, W, C], values that are not
        finite (the message has the batch, from 0), a rank that is not from 1 to d and below the number of images, and
        batches that cannot be read again.
        """
        stream = iter(batches() if callable(batches) else batches)
        first = next(stream, None)
        if first is None:
            raise ValueError("no images to fit a Gaussian to")
        shape = first.shape[1:]
        dim = math.prod(shape)
        if len(shape) != 3:
            raise ValueError(f"images of shape {list(shape)}: they must be [H, W, C]")
        if forms_covariance(dim):
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
    def from_moments(cls, moments: Moments, image_shape: ImageShape, rank: int | None = None) -> "DataGaussian":
        """The Gaussian with the accumulated moments. Raises ValueError for a rank as `fit` does."""
        dim = moments.dim
        if rank is not None and not 1 <= rank <= min(dim, moments.count - 1):
            raise ValueError(
                f"rank={rank} must be from 1 to the image dimension {dim} and below the {moments.count} images"
            )
        covariance = moments.cov
        leading = slice(None, -(rank or dim) - 1, -1)
        trace = np.trace(covariance)
        # Divide and conquer for all pairs is several times faster than scipy's method for a subset of the pairs.
        values, vectors = scipy.linalg.eigh(covariance, driver="evd", overwrite_a=True, check_finite=False)
        values = np.maximum(values[leading], 0)  # rounding can leave a null direction slightly below zero
        return cls._of_pairs(moments.mean, values, vectors[:, leading], trace, image_shape)

    @classmethod
    def _of_pairs(cls, mean, values, vectors, trace: float, image_shape: ImageShape) -> "DataGaussian":
        outside = len(mean) - len(values)
        residual = max(trace - values.sum(), 0) / outside if outside else 0.0
        return cls(mean, np.ascontiguousarray(vectors), values, np.float64(residual), image_shape)

    @property
    def captured(self) -> float:
        """The fraction of the variance that the kept eigenpairs explain, from 0 to 1."""
        inside = np.sum(self.eigenvalues)
        return float(inside / self._trace) if inside else 1.0  # identical images have no variance

    @property
    def _trace(self) -> ArrayLike:
        outside = len(self.mean) - len(self.eigenvalues)
        return np.sum(self.eigenvalues) + self.residual_variance * outside

    def scaled(self, scale: float, shift: float) -> "DataGaussian":
        """The Gaussian of scale * x + shift, where x has this Gaussian."""
        return dataclasses.replace(
            self,
            mean=scale * self.mean + shift,
            eigenvalues=scale**2 * self.eigenvalues,
            residual_variance=scale**2 * self.residual_variance,
        )

    def isotropic(self) -> "DataGaussian":
        """The Gaussian with the same mean and the same variance in every direction, the mean variance."""
        dim = len(self.mean)
        return DataGaussian(self.mean, np.zeros((dim, 0)), np.zeros(0), self._trace / dim, self.image_shape)

    def sample(self, noise: Images, alpha_bar: ArrayLike) -> Images:
        """x_t with exactly this Gaussian's mean and covariance at alpha_bar, a scalar or one per image.

        The symmetric root of the covariance is used, so the result is deterministic in the noise. For Gaussian data it
        is the map of the probability-flow ODE from pure noise, so the same noise gives comparable images from every
        start.
        """
        signal = jnp.sqrt(alpha_bar)
        noise_variance = 1 - jnp.asarray(alpha_bar)
        return per_image(signal, noise) * self._mean_image(noise.dtype) + self._transform(
            noise, lambda variance: jnp.sqrt(signal**2 * variance + noise_variance)
        )

    def eps(self, x: Images, alpha_bar: ArrayLike) -> Images:
        """The exact noise prediction at x for data with this Gaussian: -sqrt(1 - ab) times the score."""
        ab = jnp.asarray(alpha_bar)
        centred = x - per_image(jnp.sqrt(ab), x) * self._mean_image(x.dtype)
        return self._transform(centred, lambda variance: jnp.sqrt(1 - ab) / _noised(variance, ab, x.dtype))

    def predictions(self, noise: Images, alpha_bar: ArrayLike) -> tuple[Images, Images]:
        """The exact predictions (x_0, eps) at the point x_t = sample(noise, alpha_bar), for a scalar alpha_bar.

        They stand for the network's predictions above a late start. They are computed from the noise rather than from
        x_t, so that x_0 loses no digits where alpha_bar is small.
        """
        ab = jnp.asarray(alpha_bar)
        dtype = noise.dtype
        x0 = self._transform(noise, lambda variance: jnp.sqrt(ab) * variance / jnp.sqrt(_noised(variance, ab, dtype)))
        eps = self._transform(noise, lambda variance: jnp.sqrt((1 - ab) / _noised(variance, ab, dtype)))
        return self._mean_image(noise.dtype) + x0, eps

    def carried(self, displacement: Images, alpha_bar: ArrayLike) -> Images:
        """A displacement of x_t, propagated to clean data by the probability flow of this Gaussian.

        Along an eigenvector of variance L it is multiplied by sqrt(L / (ab L + 1 - ab)).
        """
        ab = jnp.asarray(alpha_bar)
        dtype = displacement.dtype
        tiny = jnp.finfo(dtype).tiny  # makes 0/0 equal 1 at alpha_bar = 1
        return self._transform(
            displacement, lambda variance: jnp.sqrt((variance + tiny) / _noised(variance, ab, dtype))
        )

    def _mean_image(self, dtype: jnp.dtype) -> jax.Array:
        return jnp.asarray(self.mean, dtype).reshape(self.image_shape)

    def _transform(self, images: Images, function: Callable[[jax.Array], jax.Array]) -> Images:
        """Applies the matrix U f(L) U^T + f(r) (I - U U^T) to each image; f maps variances."""
        flat = images.reshape(len(images), -1)
        basis = jnp.asarray(self.eigenvectors, images.dtype)
        outside = jnp.reshape(function(jnp.asarray(self.residual_variance)), (-1, 1))
        inside = function(jnp.asarray(self.eigenvalues)[:, None]).T  # [1 or B, k]
        highest = jax.lax.Precision.HIGHEST  # otherwise a TPU rounds to bfloat16
        coefficients = jnp.matmul(flat, basis, precision=highest) * (inside - outside).astype(images.dtype)
        flat = outside.astype(images.dtype) * flat + jnp.matmul(coefficients, basis.T, precision=highest)
        return flat.reshape(images.shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for `of_arrays`."""
        return {name: np.asarray(getattr(self, name)) for name in ARRAYS}

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        write_npz(path, self.arrays())

    @classmethod
    def load(cls, path: Path) -> "DataGaussian":
        """Reads what `save` wrote. Raises UserError if the file is broken or its arrays do not fit together."""
        return cls.of_arrays(read_npz(path, required=set(ARRAYS)), path)

    @classmethod
    def of_arrays(cls, stored: Mapping[str, np.ndarray], path: Path) -> "DataGaussian":
        """The Gaussian of arrays that were read from a file; the path is used in error messages."""
        shape = tuple(stored["image_shape"].ravel().tolist())
        dim = math.prod(shape)
        rank = stored["eigenvalues"].size
        shapes = [stored[name].shape for name in ARRAYS]
        if len(shape) != 3 or shapes != [(dim,), (dim, rank), (rank,), (), (3,)]:
            raise UserError(f"{path}: arrays of shapes {shapes} do not make a Gaussian of images of shape {shape}")
        if not all(np.isfinite(stored[name]).all() for name in ARRAYS):
            raise UserError(f"{path}: holds NaN or infinity")
        return cls(*(stored[name] for name in ARRAYS[:-1]), image_shape=shape)


def _noised(variance: jax.Array, alpha_bar: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The variance of a direction of x_t; kept above 0 where clean data do not vary."""
    return alpha_bar * variance + (1 - alpha_bar) + jnp.finfo(dtype).tiny


def _vectors(batches: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Batches of images as vectors. Raises ValueError for a different shape or a value that is not finite."""
    for i, batch in enumerate(batches):
        if batch.shape[1:] != shape:
            raise ValueError(f"batch {i}: images of shape {list(batch.shape[1:])} after images of shape {list(shape)}")
        if not np.isfinite(batch).all():
            raise ValueError(f"batch {i} holds NaN or infinity")
        yield batch.reshape(len(batch), math.prod(shape))


def analytic_first_step(denoiser: Denoiser, t_first: ArrayLike) -> Denoiser:
    """The denoiser with its prediction at times from t_first on replaced by sigma_t x, exact for unit Gaussian data.

    This is AFS, Dockhorn et al. (2022, GENIE, arXiv 2210.05475). With t_first the first time of a grid it saves one
    network evaluation. All images of a batch must share their time, as they do in `sample`.
    """

    def analytic(x, t):
        return per_image(denoiser.schedule.sigma(t), x) * x

    def first_step_free(x, t):
        return jax.lax.cond(t[0] >= t_first, analytic, denoiser.eps, x, t)

    return Denoiser(first_step_free, denoiser.schedule)
