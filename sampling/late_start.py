"""The distribution of late starts at every noise level: a Gaussian, or a mixture of Gaussians, fitted to the data.

If the data have mean m and covariance S, then x_t has mean sqrt(ab) m and covariance ab S + (1 - ab) I, where ab is
alpha_bar. So one eigendecomposition S = U L U^T, from one pass or a few passes over the data, is enough for all t. If
the data are a mixture of Gaussians, for example one per class, then x_t is a mixture with the same weights.
`DataMixture` samples this mixture and computes its exact noise prediction. `DataGaussian` is one Gaussian fitted to all
data, and equals a mixture with one component.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from core.diffusion import Denoiser, per_image
from core.errors import UserError
from core.files import read_npz, write_npz
from core.moments import Moments
from core.shapes import Images, ImageShape
from sampling.eigenpairs import leading_eigenpairs

Batches = Iterable[np.ndarray] | Callable[[], Iterable[np.ndarray]]

Components = Int[Array | np.ndarray, "batch"]
"""The component of each image, from 0 to K - 1."""

EXACT_UP_TO = 4096  # the largest image dimension for which the covariance matrix is formed (134 MB)
# Values of sampling.baseline. "leading" starts from pure noise at T - T/n. "afs" uses `analytic_first_step`.
# "isotropic" uses `DataMixture.isotropic`. "no_history" is a late start without a history (see `sampling.multistep`).
BASELINES = ("leading", "afs", "isotropic", "no_history")
# Values of sampling.components; all other values are numbers of clusters.
ONE = "1"
LABELS = "labels"
LOG_2_PI = math.log(2 * math.pi)
ARRAYS = ("mean", "eigenvectors", "eigenvalues", "residual_variance", "image_shape")


def forms_covariance(dim: int) -> bool:
    """Whether the covariance matrix of images of this dimension is formed. If not, `DataGaussian.fit` needs a rank."""
    return dim <= EXACT_UP_TO


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DataGaussian:
    """A Gaussian with covariance U diag(L) U^T + r (I - U U^T), fitted to images.

    To draw starts for a network, the Gaussian must be in the network's range of values (see `scaled`).

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
        """Fits the Gaussian to batches of images [batch, height, width, channels], with `rank` eigenpairs.

        Up to d = EXACT_UP_TO the covariance matrix is formed in one pass, and all eigenpairs are kept if no rank is
        given. For larger d a rank is required. Then `eigenpairs.leading_eigenpairs` takes several passes and memory for
        about 2 * rank images, and batches must be a list, or a function that returns an iterator for each pass. The
        rest of the trace becomes the residual variance.

        uint8 pixels should be passed as they are, because their sums are the fastest and have no rounding errors.
        `scaled` then converts the result to the network's range.

        Raises ValueError in these cases: there are fewer than 2 images; the images have different shapes, or are not
        [H, W, C]; a value is not finite (the message has the index of the batch); the rank is outside 1 .. d, or not
        below the number of images; the batches cannot be read again.
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
        """Makes the Gaussian that has these moments. Raises ValueError for a rank as `fit` does."""
        dim = moments.dim
        if rank is not None and not 1 <= rank <= min(dim, moments.count - 1):
            raise ValueError(
                f"rank={rank} must be from 1 to the image dimension {dim} and below the {moments.count} images"
            )
        covariance = moments.cov
        leading = slice(None, -(rank or dim) - 1, -1)
        trace = np.trace(covariance)
        # "evd" computes all pairs and is several times faster than scipy's method for a subset of the pairs.
        values, vectors = scipy.linalg.eigh(covariance, driver="evd", overwrite_a=True, check_finite=False)
        values = np.maximum(values[leading], 0)  # rounding can make a zero eigenvalue negative
        return cls._of_pairs(moments.mean, values, vectors[:, leading], trace, image_shape)

    @classmethod
    def _of_pairs(cls, mean, values, vectors, trace: float, image_shape: ImageShape) -> "DataGaussian":
        outside = len(mean) - len(values)
        residual = max(trace - values.sum(), 0) / outside if outside else 0.0
        return cls(mean, np.ascontiguousarray(vectors), values, np.float64(residual), image_shape)

    @property
    def captured(self) -> float:
        """Returns the fraction of the variance that the kept eigenpairs explain, from 0 to 1."""
        inside = np.sum(self.eigenvalues)
        return float(inside / self._trace) if inside else 1.0  # identical images have no variance

    @property
    def _trace(self) -> ArrayLike:
        outside = len(self.mean) - len(self.eigenvalues)
        return np.sum(self.eigenvalues) + self.residual_variance * outside

    def scaled(self, scale: float, shift: float) -> "DataGaussian":
        """Returns the Gaussian of scale * x + shift, where x has this Gaussian."""
        return dataclasses.replace(
            self,
            mean=scale * self.mean + shift,
            eigenvalues=scale**2 * self.eigenvalues,
            residual_variance=scale**2 * self.residual_variance,
        )

    def mixture(self) -> "DataMixture":
        """Returns the mixture whose only component is this Gaussian."""
        return DataMixture(
            mean=self.mean,
            eigenvectors=self.eigenvectors,
            weights=np.ones(1),
            means=jnp.zeros_like(jnp.asarray(self.eigenvalues)[None]),
            rotations=np.zeros((1, 0, 0)),
            variances=jnp.asarray(self.eigenvalues)[None],
            residual_variances=jnp.reshape(jnp.asarray(self.residual_variance), (1,)),
            image_shape=self.image_shape,
        )

    def sample(self, noise: Images, alpha_bar: ArrayLike) -> Images:
        """Maps standard normal noise to samples of x_t for data with this Gaussian.

        x_t has exactly the mean and covariance of the noised Gaussian. alpha_bar is a scalar or one per image. The
        result is a deterministic function of the noise, because the symmetric root of the covariance is used. For
        Gaussian data this function is the map of the probability-flow ODE from pure noise to x_t. So the same noise
        gives comparable images from every start.
        """
        return self.mixture().sample(noise, _first(noise), alpha_bar)

    def eps(self, x: Images, alpha_bar: ArrayLike) -> Images:
        """Returns the exact noise prediction at x for data with this Gaussian: -sqrt(1 - ab) times the score."""
        return self.mixture().eps(x, alpha_bar)

    def predictions(self, noise: Images, alpha_bar: ArrayLike) -> tuple[Images, Images]:
        """Returns the exact predictions (x_0, eps) at the point x_t = sample(noise, alpha_bar), for a scalar alpha_bar.

        Multistep solvers use how the predictions change between t_start and times above it (see
        `sampling.common.joined`).
        """
        return self.mixture().predictions(noise, _first(noise), alpha_bar)

    def carried(self, displacement: Images, alpha_bar: ArrayLike) -> Images:
        """Propagates a displacement of x_t to clean data by the probability flow of this Gaussian.

        Along an eigenvector with variance L, the displacement is multiplied by sqrt(L / (ab L + 1 - ab)).
        """
        ab = _column(alpha_bar, displacement.dtype)
        tiny = jnp.finfo(ab.dtype).tiny  # makes 0/0 equal 1 at alpha_bar = 1
        return self.mixture().transform(
            displacement, _first(displacement), lambda variance: jnp.sqrt((variance + tiny) / _noised(variance, ab))
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all fields as arrays, for `of_arrays`."""
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
        """Makes a Gaussian of arrays that were read from a file. `path` is for error messages."""
        shape = tuple(stored["image_shape"].ravel().tolist())
        dim = math.prod(shape)
        rank = stored["eigenvalues"].size
        shapes = [stored[name].shape for name in ARRAYS]
        if len(shape) != 3 or shapes != [(dim,), (dim, rank), (rank,), (), (3,)]:
            raise UserError(f"{path}: arrays of shapes {shapes} do not make a Gaussian of images of shape {shape}")
        if not all(np.isfinite(stored[name]).all() for name in ARRAYS):
            raise UserError(f"{path}: holds NaN or infinity")
        return cls(*(stored[name] for name in ARRAYS[:-1]), image_shape=shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DataMixture:
    """A mixture of K Gaussians in shared coordinates, fitted to images. Late starts are drawn from it.

    An image x has the coordinates y = U^T (x - mean). In component c, the mean of y is means[c]. The covariance of y is
    rotations[c] diag(variances[c, :r]) rotations[c]^T in the first r directions, and diag(variances[c, r:]) in the
    others. In directions outside the span of U, x has the variance residual_variances[c] around `mean`. A single
    Gaussian is the case K = 1, r = 0. The mixture takes memory for d k + K (r^2 + 2 k) numbers.

    Attributes:
      mean: [d], the mean of all data, with d = height * width * channels.
      eigenvectors: U of shape [d, k], orthonormal columns.
      weights: [K], positive, with sum 1.
      means: [K, k].
      rotations: [K, r, r], orthogonal.
      variances: [K, k].
      residual_variances: [K].
      image_shape: (height, width, channels).
    """

    mean: ArrayLike
    eigenvectors: ArrayLike
    weights: ArrayLike
    means: ArrayLike
    rotations: ArrayLike
    variances: ArrayLike
    residual_variances: ArrayLike
    image_shape: ImageShape = dataclasses.field(metadata={"static": True})

    @property
    def num_components(self) -> int:
        """Returns K."""
        return len(self.weights)

    def scaled(self, scale: float, shift: float) -> "DataMixture":
        """Returns the mixture of scale * x + shift, where x has this mixture."""
        return dataclasses.replace(
            self,
            mean=scale * self.mean + shift,
            means=scale * self.means,
            variances=scale**2 * self.variances,
            residual_variances=scale**2 * self.residual_variances,
        )

    def isotropic(self) -> "DataMixture":
        """Returns the mixture in which each component has the same variance in all directions: its mean variance."""
        dim, rank = self.eigenvectors.shape
        mean_variances = (self.variances.sum(axis=1) + (dim - rank) * self.residual_variances) / dim
        return dataclasses.replace(
            self,
            variances=jnp.broadcast_to(mean_variances[:, None], self.variances.shape),
            residual_variances=mean_variances,
        )

    def restricted(self, components: Sequence[int]) -> "DataMixture":
        """Returns the mixture of only these components, with weights in the same proportions."""
        chosen = np.asarray(components)
        weights = self.weights[chosen]
        return dataclasses.replace(
            self,
            weights=weights / weights.sum(),
            means=self.means[chosen],
            rotations=self.rotations[chosen],
            variances=self.variances[chosen],
            residual_variances=self.residual_variances[chosen],
        )

    def sample(self, noise: Images, component: Components, alpha_bar: ArrayLike) -> Images:
        """Maps standard normal noise to a sample of x_t from the component of each image.

        alpha_bar is a scalar or one per image. The result is a deterministic function of noise and component, because
        the symmetric root of the component's covariance is used. For each component, this function is the map of the
        component's probability-flow ODE from pure noise to x_t.
        """
        ab = _column(alpha_bar, noise.dtype)
        spread = self.transform(noise, component, lambda variance: jnp.sqrt(ab * variance + (1 - ab)))
        return per_image(jnp.sqrt(ab[:, 0]), noise) * self.component_means(noise.dtype)[component] + spread

    def predictions(self, noise: Images, component: Components, alpha_bar: ArrayLike) -> tuple[Images, Images]:
        """Returns the exact predictions (x_0, eps) of each component at x_t = sample(noise, component, alpha_bar).

        Multistep solvers use how the predictions change between t_start and times above it (see
        `sampling.common.joined`). They are computed from the noise instead of x_t, so that x_0 is accurate even if
        alpha_bar is small.
        """
        ab = _column(alpha_bar, noise.dtype)
        x0 = self.transform(
            noise, component, lambda variance: jnp.sqrt(ab) * variance / jnp.sqrt(_noised(variance, ab))
        )
        eps = self.transform(noise, component, lambda variance: jnp.sqrt((1 - ab) / _noised(variance, ab)))
        return self.component_means(noise.dtype)[component] + x0, eps

    def eps(self, x: Images, alpha_bar: ArrayLike) -> Images:
        """Returns the exact noise prediction at x for data with this mixture: -sqrt(1 - ab) times the score.

        This is the mean of the components' noise predictions, weighted by the posterior probabilities of the components
        at x. alpha_bar is a scalar or one per image.
        """
        place = self._place(x, alpha_bar)

        def add(total, component):
            log_sum, inside, outside = total
            log_joint, component_inside, component_outside = _evaluate(component, place)
            new = jnp.logaddexp(log_sum, log_joint)
            old_share = jnp.exp(log_sum - new)[:, None]
            new_share = jnp.exp(log_joint - new)[:, None]
            inside = old_share * inside + new_share * component_inside
            return (new, inside, old_share * outside + new_share * component_outside), None

        zero = jnp.zeros(len(x), x.dtype)
        nothing = (zero - jnp.inf, jnp.zeros_like(place.inside), zero[:, None])
        (_, inside, outside), _ = jax.lax.scan(add, nothing, self._components(x.dtype))
        flat = _product(inside, jnp.asarray(self.eigenvectors, x.dtype).T)
        if place.outside is not None:
            flat += outside * place.outside
        return flat.reshape(x.shape)

    def log_joint(self, x: Images, alpha_bar: ArrayLike) -> Float[Array, "batch components"]:
        """Returns log(weight) + log(density at x) for each component of x_t. Their logsumexp is log p(x_t)."""
        place = self._place(x, alpha_bar)
        return jax.lax.map(lambda component: _evaluate(component, place)[0], self._components(x.dtype)).T

    def transform(self, images: Images, component: Components, function: Callable[[Array], Array]) -> Images:
        """Multiplies each image by f(S). S is the covariance of its component, and f = `function` maps variances."""
        dtype = images.dtype
        flat = images.reshape(len(images), -1)
        basis = jnp.asarray(self.eigenvectors, dtype)
        outside = function(jnp.asarray(self.residual_variances, dtype)[component][:, None])
        inside = function(jnp.asarray(self.variances, dtype)[component])
        rotated = self._rotated(_product(flat, basis), component)
        coordinates = self._rotated(rotated * (inside - outside), component, back=True)
        return (outside * flat + _product(coordinates, basis.T)).reshape(images.shape)

    def component_means(self, dtype: jnp.dtype) -> Float[Array, "components height width channels"]:
        """Returns the mean image of each component."""
        basis = jnp.asarray(self.eigenvectors, dtype)
        flat = jnp.asarray(self.mean, dtype) + _product(jnp.asarray(self.means, dtype), basis.T)
        return flat.reshape(-1, *self.image_shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all fields as arrays, for `of_arrays`."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def of_arrays(cls, stored: Mapping[str, np.ndarray], path: Path) -> "DataMixture":
        """Makes a mixture of arrays that were read from a file. `path` is for error messages."""
        names = [field.name for field in dataclasses.fields(cls)]
        shape = tuple(stored["image_shape"].ravel().tolist())
        count = stored["weights"].size
        block = stored["rotations"].shape[-1]
        rank = stored["variances"].shape[-1]
        dim = math.prod(shape)
        expected = [(dim,), (dim, rank), (count,), (count, rank), (count, block, block), (count, rank), (count,), (3,)]
        shapes = [stored[name].shape for name in names]
        if shapes != expected or block > rank:
            raise UserError(f"{path}: arrays of shapes {shapes} do not make a mixture for images of shape {shape}")
        if not all(np.isfinite(stored[name]).all() for name in names):
            raise UserError(f"{path}: holds NaN or infinity")
        return cls(*(stored[name] for name in names[:-1]), image_shape=shape)

    def _components(self, dtype: jnp.dtype) -> "Component":
        """Returns the parameters of all components, stacked."""
        fields = (self.weights, self.means, self.rotations, self.variances, self.residual_variances)
        return Component(*(jnp.asarray(field, dtype) for field in fields))

    def _place(self, x: Images, alpha_bar: ArrayLike) -> "Place":
        """Subtracts the mean of x_t from x. Splits the result into coordinates along the eigenvectors, and the rest."""
        ab = _column(alpha_bar, x.dtype)
        basis = jnp.asarray(self.eigenvectors, x.dtype)
        centred = x.reshape(len(x), -1) - jnp.sqrt(ab) * jnp.asarray(self.mean, x.dtype)
        inside = _product(centred, basis)
        dim, rank = basis.shape
        return Place(ab, inside, centred - _product(inside, basis.T) if rank < dim else None)

    def _rotated(self, coordinates: Array, component: Components, *, back: bool = False) -> Array:
        """Rotates coordinates to the eigenvectors of each image's component, or back."""
        rotations = jnp.asarray(self.rotations, coordinates.dtype)
        block = rotations.shape[-1]
        if not block:
            return coordinates
        rotations = rotations.swapaxes(1, 2) if back else rotations

        def rotate(rotated, row):
            number, rotation = row
            chosen = (component == number)[:, None]
            return jnp.where(chosen, _product(coordinates[:, :block], rotation), rotated), None

        rows = (jnp.arange(len(rotations)), rotations)
        rotated, _ = jax.lax.scan(rotate, coordinates[:, :block], rows)
        return jnp.concatenate([rotated, coordinates[:, block:]], axis=1)


class Component(NamedTuple):
    """The parameters of one component of a DataMixture, or of all components, stacked."""

    weight: Float[Array, "..."]
    mean: Float[Array, "... k"]
    rotation: Float[Array, "... r r"]
    variances: Float[Array, "... k"]
    residual_variance: Float[Array, "..."]


class Place(NamedTuple):
    """Points x_t relative to sqrt(alpha_bar) times the mean of all data."""

    alpha_bar: Float[Array, "#batch 1"]
    inside: Float[Array, "batch k"]  # coordinates along the eigenvectors
    outside: Float[Array, "batch d"] | None  # the part outside the span of the eigenvectors; None if k = d


def _evaluate(component: Component, place: Place) -> tuple[Array, Array, Array]:
    """Returns log(weight) + log(density) of one component at points x_t, and its noise prediction in two parts.

    The parts are the coordinates of the prediction along the eigenvectors, [batch, k], and the factor of
    `place.outside` that gives the rest of the prediction, [batch or 1, 1].
    """
    ab = place.alpha_bar
    block = len(component.rotation)
    centred = place.inside - jnp.sqrt(ab) * component.mean
    own = jnp.concatenate([_product(centred[:, :block], component.rotation), centred[:, block:]], axis=1)
    variances = _noised(component.variances, ab)
    terms = jnp.sum(own**2 / variances + jnp.log(variances), axis=1) + own.shape[1] * LOG_2_PI
    residual = _noised(component.residual_variance, ab)
    if place.outside is not None:
        directions = place.outside.shape[1] - own.shape[1]
        squares = jnp.sum(place.outside**2, axis=1, keepdims=True)
        terms += (squares / residual + directions * (jnp.log(residual) + LOG_2_PI))[:, 0]
    eps = jnp.sqrt(1 - ab) * own / variances
    inside = jnp.concatenate([_product(eps[:, :block], component.rotation.T), eps[:, block:]], axis=1)
    terms = jnp.minimum(terms, jnp.finfo(terms.dtype).max / 4)  # keeps terms finite in directions with variance 0
    return jnp.log(component.weight) - terms / 2, inside, jnp.sqrt(1 - ab) / residual


def _noised(variance: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """Returns the variance of x_t in a direction where the data have `variance`. It is kept above 0."""
    return alpha_bar * variance + (1 - alpha_bar) + jnp.finfo(alpha_bar.dtype).tiny


def _product(left: Array, right: Array) -> Array:
    """Returns the matrix product in full precision. By default a TPU would round to bfloat16."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _column(alpha_bar: ArrayLike, dtype: jnp.dtype) -> Float[Array, "#batch 1"]:
    return jnp.reshape(jnp.asarray(alpha_bar, dtype), (-1, 1))


def _first(images: Images) -> Components:
    """Returns component 0 for each image."""
    return jnp.zeros(len(images), jnp.int32)


def _vectors(batches: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields batches of images as vectors. Raises ValueError for a different shape or a value that is not finite."""
    for i, batch in enumerate(batches):
        if batch.shape[1:] != shape:
            raise ValueError(f"batch {i}: images of shape {list(batch.shape[1:])} after images of shape {list(shape)}")
        if not np.isfinite(batch).all():
            raise ValueError(f"batch {i} holds NaN or infinity")
        yield batch.reshape(len(batch), math.prod(shape))


def analytic_first_step(denoiser: Denoiser, t_first: ArrayLike) -> Denoiser:
    """Returns a denoiser that predicts sigma_t x at times t >= t_first, without calling the network.

    This prediction is exact for unit Gaussian data. The method is AFS, Dockhorn et al. (2022, GENIE, arXiv 2210.05475).
    If t_first is the first time of a grid, this denoiser saves one network evaluation. All images of a batch must be at
    the same time, as they are in `sample`.
    """

    def analytic(x, t):
        return per_image(denoiser.schedule.sigma(t), x) * x

    def first_step_free(x, t):
        return jax.lax.cond(t[0] >= t_first, analytic, denoiser.eps, x, t)

    return Denoiser(first_step_free, denoiser.schedule)
