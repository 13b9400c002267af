"""Fits a mixture of Gaussians to images, with one component per class or per cluster of k-means.

The images are assigned to components by their labels or by k-means. The means and covariances of all components are
then computed along the eigenvectors of the data's Gaussian (see `late_start.DataMixture`). This takes one pass over the
images, or two if directions must be added to the eigenvectors. If there are several components, each covariance is
shrunk towards the weighted mean of the components' covariances (the pooled covariance), with the intensity of Ledoit
and Wolf (2004). Without shrinkage, the samples of a component with few images would be copies of these images.
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

FEWEST = 10  # the smallest number of images in a cluster; smaller clusters are dissolved
CLUSTER_DIRECTIONS = 50  # number of leading eigenvectors along which k-means measures distances
LARGEST_ROTATIONS = 2**24  # limit of the total size of the components' eigenvector matrices: 67 MB in float32
LARGEST_COORDINATES = 2**28  # limit of the total size of the images' coordinates: 1 GB in float32
ROUNDING_VARIANCE = 1 / 12  # variance of the error of rounding a pixel to an integer grey level
LATENT_VARIANCE = 1e-4  # as a share of the mean variance; replaces a larger ROUNDING_VARIANCE (small latents)
CHUNK_SIZE = 1024  # images per matrix product


def clusters(gaussian: DataGaussian, images: HostImages, count: int) -> Int[np.ndarray, "images"]:
    """Assigns each image to a cluster (0, 1, ...) by k-means along CLUSTER_DIRECTIONS eigenvectors, with a fixed seed.

    Clusters with fewer than FEWEST images are dissolved: each of their images joins the nearest of the other clusters.
    So there may be fewer than `count` clusters. If every cluster has fewer than FEWEST images, only the largest remain.

    gaussian: the Gaussian of the data in grey levels (0 to 255).
    """
    from sklearn.cluster import MiniBatchKMeans  # scikit-learn takes a second to import

    basis = gaussian.eigenvectors[:, :CLUSTER_DIRECTIONS]
    rows = [(vectors - gaussian.mean) @ basis for _, vectors in _chunks(images, "projections")]
    coordinates = np.concatenate(rows).astype(np.float32)
    kmeans = MiniBatchKMeans(count, random_state=0, n_init=3, batch_size=4 * CHUNK_SIZE).fit(coordinates)
    sizes = np.bincount(kmeans.labels_, minlength=count)
    large = sizes >= min(FEWEST, sizes.max())
    nearest = kmeans.transform(coordinates)[:, large].argmin(axis=1)
    return np.unique(nearest, return_inverse=True)[1]


def fit_mixture(gaussian: DataGaussian, images: HostImages, assignment: Int[np.ndarray, "images"]) -> DataMixture:
    """Fits the mixture whose component c is the Gaussian of the images with assignment c.

    gaussian: the Gaussian of all images, in grey levels (0 to 255). The mixture uses its eigenvectors. If they do not
      span the whole image space, orthonormal directions are added so that the span includes all component means. The
      images are read once, or twice if directions are added.
    assignment: the component of each image, from 0 to K - 1.

    Components have full covariances along as many leading directions as LARGEST_ROTATIONS and LARGEST_COORDINATES
    allow, and diagonal covariances along the others. Raises ValueError for a component with fewer than 2 images.
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

    first: Float[np.ndarray, "components k"]  # sums of the coordinates
    second: Float[np.ndarray, "components k"]  # sums of the squared coordinates
    squares: Float[np.ndarray, "components"]  # sums of the squared distances from the origin, in the whole image space
    leading: Float32[np.ndarray, "images block"]  # the leading coordinates of each image


def _sums(
    images: HostImages,
    assignment: Int[np.ndarray, "images"],
    *,
    origin: Float[np.ndarray, "d"],
    basis: Float[np.ndarray, "d k"],
    block: int,
) -> _Sums:
    """Computes the sums in one pass over the images."""
    count = assignment.max() + 1
    first = np.zeros((count, basis.shape[1]))
    second = np.zeros_like(first)
    squares = np.zeros(count)
    leading = np.empty((len(images), block), np.float32)
    for rows, vectors in _chunks(images, "components"):
        centred = vectors - origin
        coordinates = centred @ basis
        members = _one_hot(assignment[rows], count)
        first += members @ coordinates
        second += members @ coordinates**2
        squares += members @ (centred**2).sum(axis=1)
        leading[rows] = coordinates[:, :block]
    return _Sums(first, second, squares, leading)


def _basis(
    gaussian: DataGaussian, images: HostImages, assignment: Int[np.ndarray, "images"]
) -> Float[np.ndarray, "d k"]:
    """Returns an orthonormal basis of the span of the eigenvectors and all component means, the eigenvectors first."""
    vectors = np.asarray(gaussian.eigenvectors)
    if vectors.shape[1] == len(vectors):
        return vectors
    counts = np.bincount(assignment)
    means = np.zeros((len(counts), len(vectors)))
    for rows, pixels in _chunks(images, "means"):
        means += _one_hot(assignment[rows], len(counts)) @ (pixels - gaussian.mean) / counts[:, None]
    outside = means - means @ vectors @ vectors.T
    directions, lengths, _ = np.linalg.svd(outside.T, full_matrices=False)
    significant = lengths > 1e-6  # lengths are in grey levels; smaller ones are rounding errors
    return np.concatenate([vectors, directions[:, significant]], axis=1)


def _block_size(num_images: int, num_components: int, rank: int) -> int:
    """Returns the number of leading directions along which the components have full covariances."""
    if num_components == 1:
        return 0
    affordable = min(math.isqrt(LARGEST_ROTATIONS // num_components), LARGEST_COORDINATES // num_images)
    return max(min(rank, affordable), 1)


def _shrinkage(
    parts: Sequence[Float32[np.ndarray, "_ block"]], pooled: Float[np.ndarray, "block block"]
) -> Float[np.ndarray, "components"]:
    """Returns the intensity, from 0 to 1, with which each component's covariance is shrunk towards the pooled one.

    The coordinates are first transformed so that the pooled covariance is the identity, which is the shrinkage target
    of Ledoit and Wolf.

    parts: for each component, the centred coordinates of its images.
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
    """Turns scatter matrices about the component means into covariances that are shrunk towards the pooled covariance.

    In the same way, turns sums of squares into variances that are shrunk towards the pooled variance.
    """
    column = (-1,) + (1,) * (scatters.ndim - 1)
    pooled = scatters.sum(axis=0) / (counts.sum() - len(counts))
    own = scatters / (counts - 1).reshape(column)
    return own + shrinkage.reshape(column) * (pooled - own)


def _one_hot(assignment: Int[np.ndarray, "rows"], count: int) -> Float[np.ndarray, "{count} rows"]:
    """Returns a one-hot matrix: 1 where the image of the column belongs to the component of the row, else 0."""
    return (assignment == np.arange(count)[:, None]).astype(np.float64)


def _chunks(images: HostImages, name: str) -> Iterator[tuple[slice, Float[np.ndarray, "rows d"]]]:
    """Yields pairs of (rows, the images of these rows as vectors) for all images, with a progress bar."""
    for start in tqdm(range(0, len(images), CHUNK_SIZE), name):
        rows = slice(start, start + CHUNK_SIZE)
        yield rows, images[rows].reshape(len(images[rows]), -1).astype(np.float64)
