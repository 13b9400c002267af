"""The result of an evaluation run (result.json): its settings, its scores, and the name of its folder."""

import importlib.metadata
from pathlib import Path
from typing import Any, TypedDict

import jax

from core import files
from metrics.features import Features
from metrics.frechet import Reference
from sampling.late_start import LABELS, ONE

ROUNDING = "clipped, to the nearest of 256 grey levels"
HISTORY = "joined to the network's prediction at the start"
GRID_SIZE = 64  # images in the sample grid of a run


class ScoreSettings(TypedDict, total=False):
    """The settings that a score depends on, besides the samples. All are None if nothing is scored."""

    score_name: str | None
    features: str | None
    feature_network: str | None
    features_sha256: str | None
    resize: str | None
    reference: str | None
    reference_sha256: str | None


class RunSettings(ScoreSettings, total=False):
    """All settings that the result of a run depends on, except those that an automatic start chooses."""

    dataset: str
    checkpoint_step: int
    weights_sha256: str
    sampler: str
    n_steps: int
    nfe: int | None  # None for an adaptive sampler
    gls: bool
    t_start: int
    t_last: int
    chooses_start: bool
    components: str  # left out for a single Gaussian
    classes: list[int]  # left out for all classes
    guidance: float  # left out for a network without classes
    baseline: str
    history: str | bool  # HISTORY or, without a history, False; older versions stored True for another history
    spacing: str
    clip_x0: bool
    num_samples: int
    num_kept: int
    seed: int
    ema_rate: float
    rounding: str
    reference_file: str | None
    classifier: str | None
    gaussian_sha256: str | None
    mixture_sha256: str  # left out for a single Gaussian
    eval_loss: float | None
    bits_per_dim: dict[str, Any] | None
    source: str  # the path of images made by other software; their results have no sampling fields
    source_sha256: str


class Result(RunSettings, total=False):
    """The contents of result.json: the settings of a run, its scores, and the time, device and versions of the run."""

    score: float | None
    score_error: float | None
    score_at_infinity: float | None
    num_compared: int | None
    kid: float | None
    kid_std: float | None
    kid_subset_size: int | None
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    label_histogram: list[float]
    data_label_histogram: list[float]
    label_entropy: float
    data_label_entropy: float
    label_distance: float
    auto_start: dict[str, Any] | None
    wall_seconds: float
    images_per_second: float
    device: str
    versions: dict[str, str]


def score_settings(features: Features | None, reference: Reference | None) -> ScoreSettings:
    """The settings that a score depends on, besides the samples."""
    return {
        "score_name": features.score_name if features else None,
        "features": features.note if features else None,
        "feature_network": features.name if features else None,
        "features_sha256": features.digest if features else None,
        "resize": features.resize if features else None,
        "reference": reference.description if reference else None,
        "reference_sha256": reference.digest if reference else None,
    }


def folder_name(settings: RunSettings) -> str:
    """The name of a run's folder. It contains every setting that is not the default, so no run overwrites another."""
    start = "auto" if settings["chooses_start"] else settings["t_start"]
    parts = [
        settings["sampler"],
        f"n{settings['n_steps']}",
        f"gls{start}" if settings["gls"] else "full",
        components_label(settings).replace(" ", "-"),
        _classes_label(settings),
        settings["baseline"],
        settings["spacing"] if settings["spacing"] != "linear" else "",
        "clipped" if settings["clip_x0"] else "",
        settings["feature_network"] if settings["feature_network"] != "classifier" else "",
        f"ref{settings['reference_sha256'][:8]}" if settings["reference_file"] else "",
        own_labels(settings),
        f"step{settings['checkpoint_step']}",
        f"num{settings['num_samples']}",
        f"kept{settings['num_kept']}" if settings["num_kept"] > GRID_SIZE else "",
        "loss" if settings["eval_loss"] is not None else "",
        "bpd" if settings["bits_per_dim"] else "",
        f"seed{settings['seed']}",
    ]
    return "_".join(filter(None, parts))


def components_label(settings: RunSettings) -> str:
    """The mixture of a late start in words, with the selected classes; empty for a single Gaussian."""
    components = settings.get("components", ONE)
    if components == LABELS:
        return " ".join(["labels", *map(str, settings.get("classes", []))])
    return "" if components == ONE else f"{components} clusters"


def _classes_label(settings: RunSettings) -> str:
    """The part of a folder name for the classes of the network (unless components_label has them) and the guidance."""
    given = settings.get("classes", []) if "components" not in settings else []
    guidance = settings.get("guidance", 1)
    return "-".join(
        [*(["classes", *map(str, given)] if given else []), *([f"guided{guidance:g}"] if guidance != 1 else [])]
    )


def own_labels(settings: RunSettings) -> str:
    """The user's eval.classifier, as a part of a folder name; empty for the data set's own classifier."""
    name = settings["classifier"] or ""
    return name.replace(":", "-") if ":" in name else ""


def finished(settings: RunSettings, folder: Path) -> Result | None:
    """The stored result with these settings, or None."""
    path = folder / folder_name(settings) / "result.json"
    stored = files.read_json(path) if path.exists() else {}
    return stored if stored.items() >= settings.items() else None


def all_finished(settings: RunSettings, folder: Path) -> list[Result]:
    """All scored results in the folder whose settings include the given ones."""
    results = [files.read_json(path) for path in sorted(folder.glob("*/result.json"))]
    return [result for result in results if result.items() >= settings.items() and result["score"] is not None]


def circumstances(seconds: float, count: int) -> Result:
    """The time, rate, device and library versions of a run of `count` images."""
    return {
        "wall_seconds": round(seconds, 3),  # includes compilation, if this run compiled its programs
        "images_per_second": round(count / seconds, 3),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy", "scipy")},
    }
