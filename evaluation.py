"""Features to scores: Fréchet distances with their error bars, and the statistics that samples are scored against."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from ml_collections import ConfigDict

import datasets
import fidelity
from diversity import Labeller, label_scores
from errors import UserError
from features import Features
from files import read_npz, write_npz
from moments import Moments
from sampling.late_start import ARRAYS, DataGaussian
from tallies import Tally, merged

__all__ = ["Moments"]  # kept here for those who score, though the late start uses it too


GAUSSIAN = "gaussian"
SPLIT = "train"  # what samples are scored against
STATISTICS = 3  # raised whenever a statistics file would hold other numbers or other names


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson and Landau (1982); with Inception's features, the FID.

    means [d], covariances [d, d]; computed in float64. Raises ValueError for shapes that do not fit or values that
    are not finite; `Moments` raises it for fewer than 2 samples.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(array, np.float64) for array in (mean1, cov1, mean2, cov2))
    shapes = [array.shape for array in (mean1, cov1, mean2, cov2)]
    dim = mean1.size
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"moments of shapes {shapes} do not fit together")
    if not all(np.isfinite(array).all() for array in (mean1, cov1, mean2, cov2)):
        raise ValueError("the moments hold NaN or infinity")
    return _distance(mean1, _factor(cov1), mean2, cov2)


def _factor(cov: np.ndarray) -> np.ndarray:
    """F with F F^T = cov."""
    try:
        return np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:  # singular: fewer samples than dimensions, or a dead feature
        values, vectors = scipy.linalg.eigh(cov)
        return vectors * np.sqrt(np.maximum(values, 0))


def _distance(mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """With C1 = F F^T, tr (C1 C2)^(1/2) sums the roots of the eigenvalues of the symmetric F^T C2 F."""
    eigenvalues = scipy.linalg.eigvalsh(factor1.T @ cov2 @ factor1)
    root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.sum(factor1**2) + np.trace(cov2) - 2 * root)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What samples are scored against: the moments of a split's features, and what is known of the split."""

    mean: np.ndarray  # [d]
    cov: np.ndarray  # [d, d]
    digest: str  # SHA-256 of the moments
    description: str
    features: np.ndarray | None = None  # [at most tallies.RESERVOIR, d], spread evenly over the split
    label_counts: np.ndarray | None = None  # [K]

    @functools.cached_property
    def squared_radii(self) -> np.ndarray:
        """`fidelity.squared_radii` of the features: dearer than drawing few images, and the same for every run."""
        return fidelity.squared_radii(self.features)


class Distance(NamedTuple):
    value: float
    error: float | None  # one standard error, from the choice of samples; the reference counts as exact
    at_infinity: float | None  # what the value would be for infinitely many samples, with the same standard error


def distance(groups: Sequence[Moments], reference: Reference) -> Distance:
    """The Fréchet distance of all groups together, its standard error, and its limit for infinitely many samples.

    The error is the grouped jackknife's: how far the distance moves as each group in turn is left out. The limit is
    Chong and Forsyth's (2020): the bias falls as 1/N, so a line in 1/N meets the axis there. Here it passes through the
    whole and the mean of the halves, each of half the groups, beginning at each group in turn. Since both depend on a
    single sample alike, to first order in 1/N, the error is that of the limit as well.

    The limit is None where a half has fewer than 2 samples a feature, since the line is then bent; both are None for
    groups of fewer than 2. Warns where all groups together have fewer samples than features.
    """
    whole = merged(groups)
    if whole.count < whole.dim:
        warnings.warn(
            f"{whole.count} samples for {whole.dim} features: the covariance is singular, and the distance far too "
            f"large to compare; draw at least {whole.dim}, better {10 * whole.dim}",
            stacklevel=2,
        )
    factor = _factor(reference.cov)  # once for all that is left out below

    def to_reference(moments: Moments) -> float:
        return _distance(reference.mean, factor, moments.mean, moments.cov)

    value = to_reference(whole)
    if len(groups) < 2 or min(group.count for group in groups) < 2:
        return Distance(value, None, None)
    rests = [to_reference(merged([*groups[:k], *groups[k + 1 :]])) for k in range(len(groups))]
    error = float(np.sqrt((len(groups) - 1) * np.var(rests)))  # Efron and Stein (1981)
    if whole.count < 4 * whole.dim:
        return Distance(value, error, None)
    halves = [merged(np.roll(groups, -k)[: len(groups) // 2]) for k in range(len(groups))]
    size, mean = (np.mean(values) for values in zip(*((h.count, to_reference(h)) for h in halves), strict=True))
    return Distance(value, error, float((whole.count * value - size * mean) / (whole.count - size)))


Scores = dict[str, Any]


def scores(tally: Tally, reference: Reference) -> Scores:
    """Every score that one pass gives; None where samples or the statistics file do not suffice.

    Those of labels are left out without a classifier. Those of single features (KID, precision, recall, density,
    coverage) rest on the reservoirs, `num_compared` samples.
    """
    found = distance(tally.groups, reference)
    result: Scores = {
        "score": found.value,
        "score_error": found.error,
        "score_at_infinity": found.at_infinity,
    }
    return result | _sample_scores(tally.reservoir, reference) | _label_scores(tally, reference)


def _sample_scores(fake: np.ndarray, reference: Reference) -> Scores:
    names = ("num_compared", "kid", "kid_std", "kid_subset_size", "precision", "recall", "density", "coverage")
    real = reference.features
    if real is None or min(len(real), len(fake)) <= fidelity.DENSITY_NEIGHBOURS:
        return dict.fromkeys(names)
    values = (
        len(fake),
        *fidelity.kid(real, fake),
        *fidelity.precision_recall(real, fake, real_radii=reference.squared_radii),
        *fidelity.density_coverage(real, fake, real_radii=reference.squared_radii),
    )
    return dict(zip(names, values, strict=True))


def _label_scores(tally: Tally, reference: Reference) -> Scores:
    if reference.label_counts is None or not len(tally.label_counts):
        return {}
    return label_scores(tally.label_counts, reference.label_counts)


# Statistics files


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
