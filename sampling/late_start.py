"""The Gaussian late start: the exact Gaussian of noised data, at every t, from one pass over the data.

If data have mean m and covariance S, then x_t has mean sqrt(ab) m and covariance ab S + (1 - ab) I. With S = U L U^T
found once, drawing from that Gaussian, or predicting noise as if the data were it, is two thin products at any t.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike

from diffusion import per_image
from errors import UserError
from files import read_npz, write_npz
from moments import Moments

ARRAYS = ("mean", "eigenvectors", "eigenvalues", "residual_variance", "image_shape")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DataGaussian:
    """Mean and covariance U diag(L) U^T + r (I - U U^T) of images in the network's range.

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
    def fit(cls, batches: Iterable[np.ndarray], rank: int | None = None) -> "DataGaussian":
        """One pass over batches [B,H,W,C]; keeps `rank` leading eigenpairs (all of them if None).

        The rest of the trace is spread evenly as residual variance. Raises ValueError for fewer than 2 images, mixed
        shapes, values that are not finite, or a rank outside 1 .. d.
        """
        moments, shape = None, ()
        for batch in batches:
            if moments is None:
                shape, moments = batch.shape[1:], Moments(int(np.prod(batch.shape[1:])))
            if batch.shape[1:] != shape:
                raise ValueError(f"images of shape {list(batch.shape[1:])} after images of shape {list(shape)}")
            moments.update(batch.reshape(len(batch), -1))
        if moments is None:
            raise ValueError("no images to fit a Gaussian to")
        return cls.from_moments(moments, shape, rank)

    @classmethod
    def from_moments(
        cls, moments: Moments, image_shape: tuple[int, int, int], rank: int | None = None
    ) -> "DataGaussian":
        dim = moments.dim
        rank = dim if rank is None else rank
        if not 1 <= rank <= dim:
            raise ValueError(f"rank={rank} must be from 1 to the image dimension {dim}")
        covariance = moments.cov
        values, vectors = scipy.linalg.eigh(covariance, subset_by_index=(dim - rank, dim - 1))
        values = np.maximum(values[::-1], 0)  # rounding can leave a null direction slightly below zero
        residual = max(np.trace(covariance) - values.sum(), 0) / (dim - rank) if rank < dim else 0.0
        return cls(moments.mean, np.ascontiguousarray(vectors[:, ::-1]), values, np.float64(residual), image_shape)

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
        return self._transform(centred, lambda variance: jnp.sqrt(1 - ab) / (ab * variance + 1 - ab))

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

    def save(self, path: Path) -> None:
        write_npz(path, {name: np.asarray(getattr(self, name)) for name in ARRAYS})

    @classmethod
    def load(cls, path: Path) -> "DataGaussian":
        """Raises UserError if the file is broken or its arrays do not fit together."""
        stored = read_npz(path, required=set(ARRAYS))
        shape = tuple(stored["image_shape"].ravel().tolist())
        dim, rank = math.prod(shape), stored["eigenvalues"].size
        shapes = [stored[name].shape for name in ARRAYS]
        if len(shape) != 3 or shapes != [(dim,), (dim, rank), (rank,), (), (3,)]:
            raise UserError(f"{path}: arrays of shapes {shapes} are no Gaussian of images of shape {shape}")
        if not all(np.isfinite(stored[name]).all() for name in ARRAYS):
            raise UserError(f"{path}: holds NaN or infinity")
        return cls(*(stored[name] for name in ARRAYS[:-1]), image_shape=shape)
