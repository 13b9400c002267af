"""The fit of a mixture of Gaussians to images: one component per class, or per cluster of k-means.

The images are assigned to components by their labels or by k-means. All means and covariances are then computed in one
pass over the images, in the coordinates of the data's own Gaussian (see `late_start.DataMixture`). The covariance of a
component is shrunk towards the covariance within all components, with the intensity of Ledoit and Wolf (2004). Without
this, samples of a component of few images would be copies of these images.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float32, Int
from tqdm import tqdm

from core.shapes import HostImages
from sampling.late_start import DataGaussian, DataMixture

FEWEST = 10  # images of a cluster; smaller clusters are dissolved
CLUSTER_DIRECTIONS = 50  # leading directions of the data in which k-means measures distances
LARGEST_ROTATIONS = 2**24  # numbers in all rotations of a mixture: 67 MB in float32
LARGEST_COORDINATES = 2**28  # numbers in the coordinates of all images: 1 GB in float32
ROUNDING_VARIANCE = 1 / 12  # of a pixel that is rounded to one of 256 grey levels
LATENT_VARIANCE = 1e-4  # the least variance of a direction of latents, in units of the mean variance
ROWS = 1024  # images per matrix product


def clusters(gaussian: DataGaussian, images: HostImages, count: int) -> Int[np.ndarray, "images"]:
    """The cluster of each image, from 0 on, by k-means in CLUSTER_DIRECTIONS leading directions with a fixed seed.

    gaussian: that of the pixels. Each cluster has at least FEWEST images. Smaller ones are dissolved: their images
    join the nearest of the others. There may therefore be fewer than `count` clusters.
    """
    from sklearn.cluster import MiniBatchKMeans  # scikit-learn takes a second to import

    basis = gaussian.eigenvectors[:, :CLUSTER_DIRECTIONS]
    rows = [(vectors - gaussian.mean) @ basis for _, vectors in _chunks(images, "projections")]
    coordinates = np.concatenate(rows).astype(np.float32)
    kmeans = MiniBatchKMeans(count, random_state=0, n_init=3, batch_size=4 * ROWS).fit(coordinates)
    sizes = np.bincount(kmeans.labels_, minlength=count)
    large = sizes >= min(FEWEST, sizes.max())
    nearest = kmeans.transform(coordinates)[:, large].argmin(axis=1)
    return np.unique(nearest, return_inverse=True)[1]


def fit_mixture(gaussian: DataGaussian, images: HostImages, assignment: Int[np.ndarray, "images"]) -> DataMixture:
    """The mixture whose component c is fitted to the images with assignment c.

    gaussian: that of the pixels of all images. Its eigenvectors are the mixture's. If they do not span the image space,
    directions are added until they contain the means of all components. The images are read once, or twice if
    directions are added. assignment: from 0 to K - 1.

    Components have full covariances in as many leading directions as LARGEST_ROTATIONS and LARGEST_COORDINATES allow,
    and diagonal ones in the others. Raises ValueError for a component of fewer than 2 images.
    """
    counts = np.bincount(assignment)
    if counts.min() < 2:
        raise ValueError(f"component {counts.argmin()} has {counts.min()} images; a covariance needs at least 2")
    basis = _basis(gaussian, images, assignment)
    block = _block_size(len(images), len(counts), basis.shape[1])
    sums = _sums(images, assignment, origin=gaussian.mean, basis=basis, block=block)
    means = sums.first / counts[:, None]
    parts = [sums.leading[assignment == c] - means[c, :block] for c in range(len(counts))]
    scatters = np.stack([part.T.astype(np.float64) @ part for part in parts])
    single = np.zeros(1)  # one component has nothing to be shrunk towards
    shrinkage = _shrinkage(parts, scatters.sum(axis=0) / len(images)) if len(counts) > 1 else single
    along = np.maximum(sums.second - counts[:, None] * means**2, 0)
    total = sums.squares - counts * (means**2).sum(axis=1)
    rest = np.maximum(total - along.sum(axis=1), 0) / max(len(basis) - basis.shape[1], 1)
    values, rotations = np.linalg.eigh(_shrunk(scatters, counts, shrinkage))
    variances = _shrunk(along, counts, shrinkage)
    variances[:, :block] = np.maximum(values, 0)
    return DataMixture(
        mean=gaussian.mean,
        eigenvectors=basis,
        weights=counts / counts.sum(),
        means=means,
        rotations=rotations,
        variances=variances,
        residual_variances=_shrunk(rest, counts, shrinkage),
        image_shape=gaussian.image_shape,
    )


class _Sums(NamedTuple):
    """Sums over the images of each component. Coordinates are relative to an origin."""

    first: Float[np.ndarray, "components k"]  # of coordinates
    second: Float[np.ndarray, "components k"]  # of squared coordinates
    squares: Float[np.ndarray, "components"]  # of squared distances from the origin, in all directions
    leading: Float32[np.ndarray, "images block"]  # the leading coordinates of each image


def _sums(
    images: HostImages,
    assignment: Int[np.ndarray, "images"],
    *,
    origin: Float[np.ndarray, "d"],
    basis: Float[np.ndarray, "d k"],
    block: int,
) -> _Sums:
    """One pass over the images."""
    count = assignment.max() + 1
    first = np.zeros((count, basis.shape[1]))
    second = np.zeros_like(first)
    squares = np.zeros(count)
    leading = np.empty((len(images), block), np.float32)
    for rows, vectors in _chunks(images, "components"):
        centred = vectors - origin
        coordinates = centred @ basis
        members = _members(assignment[rows], count)
        first += members @ coordinates
        second += members @ coordinates**2
        squares += members @ (centred**2).sum(axis=1)
        leading[rows] = coordinates[:, :block]
    return _Sums(first, second, squares, leading)


def _basis(
    gaussian: DataGaussian, images: HostImages, assignment: Int[np.ndarray, "images"]
) -> Float[np.ndarray, "d k"]:
    """The eigenvectors of the Gaussian, and directions that the means of the components have outside their span."""
    vectors = np.asarray(gaussian.eigenvectors)
    if vectors.shape[1] == len(vectors):
        return vectors
    counts = np.bincount(assignment)
    means = np.zeros((len(counts), len(vectors)))
    for rows, pixels in _chunks(images, "means"):
        means += _members(assignment[rows], len(counts)) @ (pixels - gaussian.mean) / counts[:, None]
    outside = means - means @ vectors @ vectors.T
    directions, lengths, _ = np.linalg.svd(outside.T, full_matrices=False)
    return np.concatenate([vectors, directions[:, lengths > 1e-6]], axis=1)  # in grey levels; 0 but for rounding


def _block_size(num_images: int, num_components: int, rank: int) -> int:
    """The number of leading directions in which the components have full covariances."""
    if num_components == 1:
        return 0
    affordable = min(math.isqrt(LARGEST_ROTATIONS // num_components), LARGEST_COORDINATES // num_images)
    return max(min(rank, affordable), 1)


def _shrinkage(
    parts: Sequence[Float32[np.ndarray, "_ block"]], pooled: Float[np.ndarray, "block block"]
) -> Float[np.ndarray, "components"]:
    """The intensity, from 0 to 1, of shrinking the covariance of each part towards the pooled covariance.

    parts: centred coordinates. In coordinates that make the pooled covariance the identity, this is the problem of
    Ledoit and Wolf.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    least = min(ROUNDING_VARIANCE, LATENT_VARIANCE * np.trace(pooled) / len(pooled))
    root = np.linalg.cholesky(pooled + least * np.eye(len(pooled)))
    white = (scipy.linalg.solve_triangular(root, part.T, lower=True).T for part in parts)
    return np.array([ledoit_wolf_shrinkage(part, assume_centered=True) for part in white])


def _shrunk(
    scatters: Float[np.ndarray, "components *rest"],
    counts: Int[np.ndarray, "components"],
    shrinkage: Float[np.ndarray, "components"],
) -> Float[np.ndarray, "components *rest"]:
    """Covariances, or variances, of sums of squares about the components' means, shrunk towards the pooled one."""
    column = (-1,) + (1,) * (scatters.ndim - 1)
    pooled = scatters.sum(axis=0) / (counts.sum() - len(counts))
    own = scatters / (counts - 1).reshape(column)
    return own + shrinkage.reshape(column) * (pooled - own)


def _members(assignment: Int[np.ndarray, "rows"], count: int) -> Float[np.ndarray, "{count} rows"]:
    """1 where the component of an image is that of the row, else 0."""
    return (assignment == np.arange(count)[:, None]).astype(np.float64)


def _chunks(images: HostImages, name: str) -> Iterator[tuple[slice, Float[np.ndarray, "rows d"]]]:
    """One pass over the images, with a progress bar: pairs of rows and their images as vectors."""
    for start in tqdm(range(0, len(images), ROWS), name):
        rows = slice(start, start + ROWS)
        yield rows, images[rows].reshape(len(images[rows]), -1).astype(np.float64)
