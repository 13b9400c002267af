"""Samples to scores: images -> features -> moments -> distance."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg
from flax import nnx
from ml_collections import ConfigDict

import datasets
from errors import UserError
from files import read_npz, write_npz
from models import classifier
from moments import Moments
from parallel import replicate

__all__ = ["Moments"]  # kept here for those who score, though the late start uses it too


GAUSSIAN = "gaussian"


class Features(NamedTuple):
    """A feature network and what must be said beside any score made with it."""

    extract: Callable[[jax.Array], jax.Array]  # uint8 [B, H, W, C] -> [B, dim], on the devices
    dim: int
    score_name: str
    note: str
    digest: str  # SHA-256 of its weights


def load_features(config: ConfigDict, *, may_train: bool = False) -> Features:
    """The features that config.eval.features names.

    Raises UserError where they need a network that is missing, unless it may be trained, on the data set's own labels.
    """
    return FEATURES[config.eval.features](config, may_train)


def classifier_path(config: ConfigDict) -> Path:
    return datasets.REPOSITORY / config.assets_dir / "classifier" / f"{datasets.slug(config)}.npz"


def _classifier_features(config: ConfigDict, may_train: bool) -> Features:
    """The layer under the logits of the data set's own classifier."""
    data = config.data
    path = classifier_path(config)
    if not path.exists():
        if not may_train:
            raise UserError(f"no {path}: run --mode=fid_stats with the same --config first")
        trained = classifier.train(*datasets.load_labelled(config), seed=0)
        classifier.save(path, trained, (data.image_size, data.image_size, data.num_channels))
    stored = classifier.load(path)
    graphdef, params = nnx.split(stored.network)
    extract = jax.jit(lambda params, images: nnx.merge(graphdef, params).features(images))
    return Features(
        functools.partial(extract, replicate(params)),
        classifier.FEATURES,
        "FD (classifier)",
        f"classifier accuracy {stored.accuracy:.1%} on {stored.num_held_out} held-out images",
        stored.digest,
    )


FEATURES = {"classifier": _classifier_features}


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson and Landau (1982); with Inception's features, the FID.

    means [d], covariances [d, d]; computed in float64. Raises ValueError for shapes that do not fit or values that
    are not finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(array, np.float64) for array in (mean1, cov1, mean2, cov2))
    shapes = [array.shape for array in (mean1, cov1, mean2, cov2)]
    dim = mean1.size
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"moments of shapes {shapes} do not fit together")
    if not all(np.isfinite(array).all() for array in (mean1, cov1, mean2, cov2)):
        raise ValueError("the moments hold NaN or infinity")
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * _trace_root(cov1, cov2))


def _trace_root(cov1: np.ndarray, cov2: np.ndarray) -> float:
    """tr (C1 C2)^(1/2): with C1 = F F^T, the eigenvalues of C1 C2 are those of the symmetric F^T C2 F."""
    try:
        factor = np.linalg.cholesky(cov1)
    except np.linalg.LinAlgError:  # singular: fewer samples than dimensions, or a dead feature
        values, vectors = scipy.linalg.eigh(cov1)
        factor = vectors * np.sqrt(np.maximum(values, 0))
    eigenvalues = scipy.linalg.eigvalsh(factor.T @ cov2 @ factor)
    return float(np.sqrt(np.maximum(eigenvalues, 0)).sum())


class Reference(NamedTuple):
    """What samples are scored against: the moments of the training split's features."""

    mean: np.ndarray  # [d]
    cov: np.ndarray  # [d, d]
    digest: str  # SHA-256 of the moments


def distance(moments: Moments, reference: Reference) -> float:
    return frechet_distance(moments.mean, moments.cov, reference.mean, reference.cov)


def stats_path(config: ConfigDict, kind: str) -> Path:
    """Where fid_stats keeps the training split's statistics: kind is the name of some features, or GAUSSIAN."""
    data = config.data
    kind = f"{kind}_01" if kind == GAUSSIAN and not data.centered else kind  # its numbers are in the network's range
    return datasets.REPOSITORY / config.assets_dir / "stats" / f"{datasets.slug(config)}_{kind}.npz"


def require_stats(config: ConfigDict, *kinds: str) -> None:
    """Raises UserError where `fid_stats` has not been run for this config."""
    for kind in kinds:
        if not stats_path(config, kind).exists():
            raise UserError(f"no {stats_path(config, kind)}: run --mode=fid_stats with the same --config first")


def save_reference(config: ConfigDict, features: Features, moments: Moments) -> Path:
    path = stats_path(config, config.eval.features)
    facts = {"count": np.asarray(moments.count), "features": np.asarray(features.digest)}
    write_npz(path, {"mean": moments.mean, "cov": moments.cov} | facts)
    return path


def load_reference(config: ConfigDict, features: Features) -> Reference:
    """Raises UserError if the file is broken or was made with other features."""
    path = stats_path(config, config.eval.features)
    stored = read_npz(path, required={"mean", "cov", "count", "features"})
    if str(stored["features"]) != features.digest:
        raise UserError(f"{path} was made with other feature weights: run --mode=fid_stats again with this config")
    digest = hashlib.sha256(stored["mean"].tobytes() + stored["cov"].tobytes()).hexdigest()
    return Reference(stored["mean"], stored["cov"], digest)
