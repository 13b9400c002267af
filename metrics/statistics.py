"""Statistics files: the Gaussian of a data set and the moments of its features, fitted, checked, saved and loaded."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from core import files, parallel
from core.errors import UserError
from core.files import read_npz, write_npz
from core.moments import EXACT_ROWS, Moments
from metrics.features import Features
from metrics.frechet import Reference
from metrics.labels import Labeller
from metrics.tally import Tally
from sampling.eigenpairs import ROWS
from sampling.late_start import ARRAYS, EXACT_UP_TO, DataGaussian

__all__ = ["Moments"]  # kept here for those who score, though the late start uses it too


GAUSSIAN = "gaussian"
SPLIT = "train"  # what samples are scored against
STATISTICS = 3  # raised whenever a statistics file would hold other numbers or other names


def stats_path(config: ConfigDict, kind: str) -> Path:
    """Where fid_stats keeps the training split's statistics: kind is the name of some features, or GAUSSIAN."""
    data = config.data
    kind = f"{kind}_01" if kind == GAUSSIAN and not data.centered else kind  # its numbers are in the network's range
    return files.REPOSITORY / config.assets_dir / "stats" / f"{datasets.slug(config)}_{kind}.npz"


def require_stats(config: ConfigDict, *kinds: str) -> None:
    """Raises UserError where `fid_stats` has not been run for this config."""
    for kind in kinds:
        if not stats_path(config, kind).exists():
            raise UserError(f"no {stats_path(config, kind)}: run --mode=fid_stats with the same --config first")


def _origin(config: ConfigDict, **facts: Any) -> dict[str, Any]:
    """What a statistics file says of itself, and must agree with the config that reads it."""
    data = config.data
    return {
        "statistics": STATISTICS,
        "dataset": data.dataset,
        "split": SPLIT,
        "image_size": data.image_size,
        "num_channels": data.num_channels,
        **facts,
    }


def _files(config: ConfigDict) -> dict[str, str | None]:
    """Which files the images are; a statistics file from elsewhere need not agree."""
    return {"path": datasets.absolute(config.data.path), "stamp": datasets.stamp(config, SPLIT)}


def _features_origin(config: ConfigDict, features: Features) -> dict[str, Any]:
    return _origin(config, features=features.name, features_sha256=features.digest)


def _gaussian_origin(config: ConfigDict) -> dict[str, Any]:
    return _origin(config, centered=config.data.centered)


def save_gaussian(config: ConfigDict, gaussian: DataGaussian, images: np.ndarray) -> Path:
    """Writes the Gaussian of a split's images, uint8 [N, H, W, C], with their origin, number and SHA-256."""
    path, digest = stats_path(config, GAUSSIAN), hashlib.sha256(images).hexdigest()
    origin = _gaussian_origin(config) | _files(config) | {"count": len(images), "images_sha256": digest}
    write_npz(path, gaussian.arrays() | {"origin": np.asarray(json.dumps(origin))})
    return path


def load_gaussian(config: ConfigDict) -> DataGaussian:
    """What `save_gaussian` wrote.

    Raises UserError if the file is broken, does not say of which images it is, or is of others: another data set, size
    or range, or another version.
    """
    path = stats_path(config, GAUSSIAN)
    stored = read_npz(path, required=set(ARRAYS))
    if "origin" not in stored:
        raise UserError(f"{path} does not say which images it was made of: {AGAIN}")
    _checked_origin(_gaussian_origin(config) | _files(config), path, str(stored["origin"]))
    return DataGaussian.of_arrays(stored, path)


def save_reference(config: ConfigDict, features: Features, tally: Tally, labeller: Labeller | None = None) -> Path:
    """Writes a split's statistics, under the names that pytorch-fid reads, with their origin."""
    path, moments = stats_path(config, config.eval.features), tally.moments
    origin = _features_origin(config, features) | {
        **_files(config),
        "count": moments.count,
        "classifier": labeller.name if labeller else None,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")},
    }
    arrays = {"mu": moments.mean, "sigma": moments.cov, "features": tally.reservoir, "label_counts": tally.label_counts}
    write_npz(path, arrays | {"origin": np.asarray(json.dumps(origin))})
    return path


def load_reference(config: ConfigDict, features: Features, labeller: Labeller | None = None) -> Reference:
    """The statistics of fid_stats, or those of config.eval.reference, which may come from elsewhere.

    Files from elsewhere hold `mu` [d] and `sigma` (pytorch-fid, EDM) or `cov` (the paper's) [d, d], and say nothing of
    where they come from. Raises UserError if the file is broken, or was made of other data, features or labels, or by
    another version.
    """
    path = Path(config.eval.reference) if config.eval.reference else stats_path(config, config.eval.features)
    stored = read_npz(path, required={"mu"} if config.eval.reference else {"mu", "sigma", "origin"})
    mean, cov = stored["mu"], stored.get("sigma", stored.get("cov"))
    if cov is None or mean.shape != (features.dim,) or cov.shape != (features.dim, features.dim):
        shapes = {name: list(array.shape) for name, array in stored.items()}
        raise UserError(f"{path}: expected mu and sigma (or cov) of {features.dim} {features.name} features: {shapes}")
    if not all(part.dtype.kind in "fiu" and np.isfinite(part).all() for part in (mean, cov)):
        raise UserError(f"{path}: its moments are not all finite numbers")
    digest = _digest(mean, cov)
    if "origin" not in stored:
        return Reference(mean, cov, digest, f"{path.name}, which does not say what it was made of")
    expected = _features_origin(config, features)
    if not config.eval.reference:  # a colleague's images lie elsewhere
        expected |= _files(config)
    origin = _checked_origin(expected, path, str(stored["origin"]))
    labelled = labeller is not None and labeller.name == origin.get("classifier")
    if labeller and config.eval.classifier and not labelled:
        raise UserError(f"{path} counts labels of {origin.get('classifier')}, not of {labeller.name}: {AGAIN}")
    description = f"{origin['dataset']}, {origin['split']} split, {origin['count']} images"
    return Reference(
        mean, cov, digest, description, stored.get("features"), stored.get("label_counts") if labelled else None
    )


def reference_of(tally: Tally, path: Path) -> Reference:
    """A set of images as what others are scored against; `path` is where they lie."""
    moments = tally.moments
    mean, cov = moments.mean, moments.cov
    description = f"{path}, {tally.count} images"
    return Reference(mean, cov, _digest(mean, cov), description, tally.reservoir, tally.label_counts)


def _digest(mean: np.ndarray, cov: np.ndarray) -> str:
    return hashlib.sha256(np.float64(mean).tobytes() + np.float64(cov).tobytes()).hexdigest()


AGAIN = "run --mode=fid_stats again with this config"


def _checked_origin(expected: Mapping[str, Any], path: Path, text: str) -> dict[str, Any]:
    try:
        origin = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its origin cannot be read ({error}): {AGAIN}") from error
    for name, value in expected.items():
        if value not in (None, origin.get(name)):  # None: there are no files to ask
            found = f"its {name} is {origin.get(name)}, this config's {value}"
            changed = f"the images at {origin.get('path')} have changed since it was made"
            raise UserError(f"{path}: {changed if name == 'stamp' else found}: {AGAIN}")
    return origin


def require_enough(images: np.ndarray, rank: int) -> None:
    if len(images) < 2:
        raise UserError("the training split is one image: a covariance needs at least 2")
    dim, most = images[0].size, min(images[0].size, len(images) - 1)
    if dim > EXACT_UP_TO and rank > most:
        raise UserError(f"sampling.rank={rank} is too many for {len(images)} images of dimension {dim}: at most {most}")


def fit_gaussian(config: ConfigDict, images: np.ndarray) -> DataGaussian:
    """Fitted to the pixels as they are stored, then brought into the network's range."""
    shape, dim = images.shape[1:], images[0].size
    if dim > EXACT_UP_TO:  # every process reads all the images, several times
        gaussian = DataGaussian.fit(lambda: _slices(images), config.sampling.rank)
    else:
        moments, size = Moments(dim), parallel.round_up(EXACT_ROWS)
        for batch, own in tqdm(datasets.in_order(images, size), "Gaussian", -(-len(images) // size)):
            moments.update(batch[:own].reshape(own, dim))
        gaussian = DataGaussian.from_moments(moments.of_all_processes(), shape)
    low, high = np.float64(datasets.to_network_range(np.array([0, 255]), config.data.centered))
    return gaussian.scaled((high - low) / 255, low)


def _slices(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in tqdm(range(0, len(images), ROWS), "directions"):
        yield images[start : start + ROWS]
