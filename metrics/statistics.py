"""Statistics files: the Gaussian or mixture fitted to a data set, and the moments of its features."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Real, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from core import files, parallel
from core.arithmetic import ceil_div
from core.errors import UserError
from core.files import read_npz, write_npz
from core.moments import EXACT_ROWS, Moments
from core.paths import path_field
from core.shapes import HostImages
from datasets import Split
from metrics.features import Features
from metrics.frechet import Reference
from metrics.labels import Labeller
from metrics.tally import Tally
from sampling.components import FEWEST, clusters
from sampling.components import fit_mixture as mixture_of
from sampling.eigenpairs import ROWS
from sampling.generate import classes_of
from sampling.late_start import ARRAYS, LABELS, ONE, DataGaussian, DataMixture, forms_covariance

# The kinds of statistics are GAUSSIAN, MIXTURE_<components>, and the names of features ("classifier", "inception", ..).
GAUSSIAN = "gaussian"
MIXTURE = "mixture"
SPLIT = "train"  # samples are scored against this split
VERSION = 3  # must be incremented if a change of the code changes the numbers or names in statistics files
RERUN_STATS = "run --mode=fid_stats again with this config"


def stats_path(config: ConfigDict, kind: str) -> Path:
    """The file in which fid_stats saves statistics of this kind.

    A Gaussian or mixture is in the network's range, so it has another file if data.centered is false.
    """
    suffix = "_01" if kind.startswith((GAUSSIAN, MIXTURE)) and not config.data.centered else ""
    name = f"{datasets.slug(config)}_{kind}{suffix}.npz"
    return files.REPOSITORY / path_field(config, "assets_dir") / "stats" / name


def require_stats(config: ConfigDict, *kinds: str) -> None:
    """Raises UserError if fid_stats has not saved statistics of these kinds for this config."""
    for kind in kinds:
        path = stats_path(config, kind)
        if not path.exists():
            components = kind.removeprefix(f"{MIXTURE}_")
            field = f" and --config.sampling.components={components}" if components != kind else ""
            raise UserError(f"no {path}: run --mode=fid_stats with the same --config{field} first")


def mixture_kind(components: str) -> str:
    """The kind of statistics for a value of sampling.components: GAUSSIAN for "1", else "mixture_<components>"."""
    return GAUSSIAN if components == ONE else f"{MIXTURE}_{components}"


def fitted_components(config: ConfigDict) -> list[str]:
    """Returns the values of sampling.components whose statistics fid_stats has saved, with one Gaussian first.

    Clusters are left out if the network has classes.
    """
    pattern = stats_path(config, mixture_kind("*"))
    before, after = pattern.name.split("*")
    names = [path.name.removeprefix(before).removesuffix(after) for path in pattern.parent.glob(pattern.name)]
    clusters_allowed = not config.model.label_dim
    return [ONE, *sorted(name for name in names if name == LABELS or (clusters_allowed and name.isdecimal()))]


# The origin of a statistics file: a JSON object with the data it was made of, compared with the config of each reader


def _origin(config: ConfigDict, **facts: Any) -> dict[str, Any]:
    data = config.data
    return {
        "statistics": VERSION,
        "dataset": data.dataset,
        "split": SPLIT,
        "image_size": data.image_size,
        "num_channels": data.num_channels,
        **facts,
    }


def _features_origin(config: ConfigDict, features: Features) -> dict[str, Any]:
    return _origin(config, features=features.name, features_sha256=features.digest)


def _gaussian_origin(config: ConfigDict) -> dict[str, Any]:
    return _origin(config, centered=config.data.centered)


def _image_files(config: ConfigDict) -> dict[str, str | None]:
    """The path of the images and a hash of the files. They are not compared if statistics come from eval.reference."""
    return {"path": datasets.absolute(config.data.path), "stamp": datasets.stamp(config, SPLIT)}


def _checked_origin(expected: Mapping[str, Any], path: Path, text: str) -> dict[str, Any]:
    """Parses the origin of the file at `path`. Raises UserError if a value differs from the expected one.

    Expected values of None are not compared: the hash of the image files is None if the images no longer exist.
    """
    try:
        origin = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its origin cannot be read ({error}): {RERUN_STATS}") from error
    for name, value in expected.items():
        if value is None or value == origin.get(name):
            continue
        if name == "stamp":
            raise UserError(f"{path}: the images at {origin.get('path')} have changed since it was made: {RERUN_STATS}")
        raise UserError(f"{path}: its {name} is {origin.get(name)}, this config's {value}: {RERUN_STATS}")
    return origin


# The Gaussian


def require_enough(images: HostImages, rank: int) -> None:
    """Raises UserError if there is only one image.

    Also raises it if there are too few images for this rank, and the covariance is too large to be formed, so that
    `fit_gaussian` uses the rank.
    """
    if len(images) < 2:
        raise UserError("the training split is one image: a covariance needs at least 2")
    dim = images[0].size
    most = min(dim, len(images) - 1)
    if not forms_covariance(dim) and rank > most:
        raise UserError(f"sampling.rank={rank} is too many for {len(images)} images of dimension {dim}: at most {most}")


def fit_gaussian(images: HostImages, *, rank: int, centered: bool) -> DataGaussian:
    """The Gaussian of the images in the network's range: [-1, 1] if centered, else [0, 1].

    It is fitted to the stored pixels and then scaled. rank: the number of eigenpairs. If the covariance is formed (see
    `late_start.forms_covariance`), all eigenpairs are kept, and each process reads only its own images.
    """
    dim = images[0].size
    if forms_covariance(dim):
        gaussian = DataGaussian.from_moments(_moments(images), images.shape[1:])
    else:
        gaussian = DataGaussian.fit(lambda: _slices(images), rank)
    return gaussian.scaled(*_to_network_range(images, centered))


def _to_network_range(images: HostImages, centered: bool) -> tuple[float, float]:
    """The (scale, shift) that maps the images to the network's range. Latents are already in this range."""
    if images.dtype != np.uint8:
        return 1.0, 0.0
    low, high = np.float64(datasets.to_network_range(np.array([0, 255]), centered))
    return (high - low) / 255, low


def _moments(images: HostImages) -> Moments:
    """The moments of the pixels. Each process reads its own rows, and the sums of all processes are merged."""
    moments = Moments(images[0].size)
    size = parallel.round_up(EXACT_ROWS)
    batches = datasets.in_order(images, size)
    for batch, count in tqdm(batches, desc="Gaussian", total=ceil_div(len(images), size)):
        moments.update(batch[:count].reshape(count, moments.dim))
    return moments.of_all_processes()


def _slices(images: HostImages) -> Iterator[HostImages]:
    """Yields all images once, in batches."""
    for start in tqdm(range(0, len(images), ROWS), "directions"):
        yield images[start : start + ROWS]


def save_gaussian(config: ConfigDict, gaussian: DataGaussian, images: HostImages) -> Path:
    """Writes the Gaussian of the images and its origin, which includes the SHA-256 of the images."""
    path = stats_path(config, GAUSSIAN)
    digest = hashlib.sha256(images).hexdigest()
    origin = _gaussian_origin(config) | _image_files(config) | {"count": len(images), "images_sha256": digest}
    write_npz(path, gaussian.arrays() | {"origin": np.asarray(json.dumps(origin))})
    return path


def load_gaussian(config: ConfigDict) -> DataGaussian:
    """Reads the Gaussian that `save_gaussian` wrote.

    Raises UserError if the file is broken, has no origin, or was made for another data set, image size, range or
    VERSION.
    """
    path = stats_path(config, GAUSSIAN)
    stored = read_npz(path, required=set(ARRAYS))
    if "origin" not in stored:
        raise UserError(f"{path} does not say which images it was made of: {RERUN_STATS}")
    _checked_origin(_gaussian_origin(config) | _image_files(config), path, str(stored["origin"]))
    return DataGaussian.of_arrays(stored, path)


# The mixture


def require_components(components: str, split: Split) -> None:
    """Raises UserError if the images have no labels for components="labels", or are too few for so many clusters."""
    field = f"sampling.components={components!r}"
    count = len(split.images)
    if components != LABELS:
        most = max(count // FEWEST, 1)
        if int(components) > most:
            raise UserError(f"{field} is too many for {count} images: at most {most}, so that each has {FEWEST} images")
    elif split.labels is None:
        raise UserError(f"{field} needs labels, and this data set has none; give a number of clusters, such as '10'")
    else:
        sizes = np.bincount(split.labels)
        few = np.flatnonzero((sizes > 0) & (sizes < 2))
        if len(few):
            raise UserError(f"{field}: class {few[0]} has one image; a covariance needs at least 2. Use clusters")


def fit_mixture(
    gaussian: DataGaussian, split: Split, components: str, *, centered: bool
) -> tuple[DataMixture, Int[np.ndarray, "components"]]:
    """The mixture of sampling.components in the network's range, and the class or cluster number of each component.

    gaussian: the Gaussian of all images in the network's range.
    """
    scale, shift = _to_network_range(split.images, centered)
    of_pixels = gaussian.scaled(1 / scale, -shift / scale)
    if components == LABELS:
        names, assignment = np.unique(split.labels, return_inverse=True)
    else:
        assignment = clusters(of_pixels, split.images, int(components))
        names = np.arange(assignment.max() + 1)
    return mixture_of(of_pixels, split.images, assignment).scaled(scale, shift), names


def save_mixture(
    config: ConfigDict, components: str, mixture: DataMixture, names: Int[np.ndarray, "components"]
) -> Path:
    """Writes the mixture, the class or cluster number of each component, and the origin."""
    path = stats_path(config, mixture_kind(components))
    origin = _gaussian_origin(config) | _image_files(config) | {"components": components}
    write_npz(path, mixture.arrays() | {"names": names, "origin": np.asarray(json.dumps(origin))})
    return path


def load_mixture(config: ConfigDict) -> DataMixture:
    """The mixture of config.sampling.components, restricted to config.sampling.classes if there are any.

    For a network with classes, the components are its classes in the order of `generate.classes_of`.

    Raises UserError if the file is broken or was made of other data, or if a class does not exist.
    """
    settings = config.sampling
    path = stats_path(config, mixture_kind(settings.components))
    names = {field.name for field in dataclasses.fields(DataMixture)}
    stored = read_npz(path, required=names | {"names", "origin"})
    expected = _gaussian_origin(config) | _image_files(config) | {"components": settings.components}
    _checked_origin(expected, path, str(stored["origin"]))
    mixture = DataMixture.of_arrays(stored, path)
    classes = stored["names"].tolist()
    drawn = classes_of(config) if config.model.label_dim else list(settings.classes)
    unknown = sorted(set(drawn) - set(classes))
    if unknown:
        raise UserError(f"sampling.classes: no class {unknown[0]}; the classes are {', '.join(map(str, classes))}")
    return mixture.restricted([classes.index(label) for label in drawn]) if drawn else mixture


# The reference of scores


def save_reference(config: ConfigDict, features: Features, tally: Tally, *, labeller: Labeller | None = None) -> Path:
    """Writes the statistics of the features and their origin. mu and sigma are the names that pytorch-fid reads."""
    path = stats_path(config, config.eval.features)
    moments = tally.moments
    origin = _features_origin(config, features) | {
        **_image_files(config),
        "count": moments.count,
        "classifier": labeller.name if labeller else None,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")},
    }
    arrays = {"mu": moments.mean, "sigma": moments.cov, "features": tally.reservoir, "label_counts": tally.label_counts}
    write_npz(path, arrays | {"origin": np.asarray(json.dumps(origin))})
    return path


def load_reference(config: ConfigDict, features: Features, labeller: Labeller | None = None) -> Reference:
    """Reads the statistics in config.eval.reference or, if that is empty, those that fid_stats wrote.

    A file of other software contains `mu` of shape [dim] and `sigma` (pytorch-fid, EDM) or `cov` (the paper's code) of
    shape [dim, dim], and no origin. Raises UserError if the file is broken, or was made for other data, features or
    labels, or by another VERSION.
    """
    path = path_field(config, "eval.reference") if config.eval.reference else stats_path(config, config.eval.features)
    stored = read_npz(path, required={"mu"} if config.eval.reference else {"mu", "sigma", "origin"})
    mean, cov = _checked_moments(stored, features, path)
    digest = _digest(mean, cov)
    if "origin" not in stored:
        return Reference(mean, cov, digest, f"{path.name}, which does not say what it was made of")
    expected = _features_origin(config, features)
    if not config.eval.reference:  # eval.reference may come from another machine, where the images have another path
        expected |= _image_files(config)
    origin = _checked_origin(expected, path, str(stored["origin"]))
    same_labels = labeller is not None and labeller.name == origin.get("classifier")
    if labeller and config.eval.classifier and not same_labels:
        raise UserError(f"{path} counts labels of {origin.get('classifier')}, not of {labeller.name}: {RERUN_STATS}")
    return Reference(
        mean=mean,
        cov=cov,
        digest=digest,
        description=f"{origin['dataset']}, {origin['split']} split, {origin['count']} images",
        features=stored.get("features"),
        label_counts=stored.get("label_counts") if same_labels else None,
    )


def _checked_moments(
    stored: Mapping[str, Shaped[np.ndarray, "..."]], features: Features, path: Path
) -> tuple[Real[np.ndarray, "dim"], Real[np.ndarray, "dim dim"]]:
    """The mean and covariance. Raises UserError for missing arrays, wrong shapes, and values that are not finite."""
    mean = stored["mu"]
    cov = stored.get("sigma", stored.get("cov"))
    if cov is None or mean.shape != (features.dim,) or cov.shape != (features.dim, features.dim):
        shapes = {name: list(array.shape) for name, array in stored.items()}
        raise UserError(f"{path}: expected mu and sigma (or cov) of {features.dim} {features.name} features: {shapes}")
    if not all(part.dtype.kind in "fiu" and np.isfinite(part).all() for part in (mean, cov)):
        raise UserError(f"{path}: its moments are not all finite numbers")
    return mean, cov


def reference_of(tally: Tally, path: Path) -> Reference:
    """Makes a reference from accumulated images; `path` is the folder or file of these images."""
    moments = tally.moments
    mean = moments.mean
    cov = moments.cov
    return Reference(
        mean=mean,
        cov=cov,
        digest=_digest(mean, cov),
        description=f"{path}, {tally.count} images",
        features=tally.reservoir,
        label_counts=tally.label_counts,
    )


def _digest(mean: Real[np.ndarray, "dim"], cov: Real[np.ndarray, "dim dim"]) -> str:
    return hashlib.sha256(np.float64(mean).tobytes() + np.float64(cov).tobytes()).hexdigest()
