"""What result.json holds: the settings of a run, its scores and the folder that it lies in."""

import importlib.metadata
from pathlib import Path
from typing import Any

import jax

from core import files
from metrics.features import Features
from metrics.frechet import Reference

ROUNDING = "clipped, to the nearest of 256 grey levels"
Result = dict[str, Any]


def facts(features: Features | None, reference: Reference | None) -> Result:
    """What a score depends on besides the samples, for result.json; all None where nothing is scored."""
    return {
        "score_name": features.score_name if features else None,
        "features": features.note if features else None,
        "feature_network": features.name if features else None,
        "features_sha256": features.digest if features else None,
        "resize": features.resize if features else None,
        "reference": reference.description if reference else None,
        "reference_sha256": reference.digest if reference else None,
    }


GRID_SIZE = 64  # how many images of a run are kept to be looked at


def folder_name(question: Result) -> str:
    """What is not the default is part of the name, so that no result replaces one that took more work."""
    parts = [
        question["sampler"],
        f"n{question['n_steps']}",
        f"gls{'auto' if question['chooses_start'] else question['t_start']}" if question["gls"] else "full",
        question["baseline"],
        question["spacing"] if question["spacing"] != "linear" else "",
        "clipped" if question["clip_x0"] else "",
        question["feature_network"] if question["feature_network"] != "classifier" else "",
        f"ref{question['reference_sha256'][:8]}" if question["reference_file"] else "",
        own_labels(question),
        f"step{question['checkpoint_step']}",
        f"num{question['num_samples']}",
        f"kept{question['num_kept']}" if question["num_kept"] > GRID_SIZE else "",
        "loss" if question["eval_loss"] is not None else "",
        "bpd" if question["bits_per_dim"] else "",
        f"seed{question['seed']}",
    ]
    return "_".join(filter(None, parts))


def own_labels(question: Result) -> str:
    """eval.classifier, module:function, as a part of a name."""
    name = question["classifier"] or ""
    return name.replace(":", "-") if ":" in name else ""


def finished(question: Result, folder: Path) -> Result | None:
    """The result that lies in the folder, if it answers this question."""
    path = folder / folder_name(question) / "result.json"
    stored = files.read_json(path) if path.exists() else {}
    return stored if stored.items() >= question.items() else None


def all_finished(facts: Result, folder: Path) -> list[Result]:
    """Every scored result in the folder that agrees with these facts."""
    results = [files.read_json(path) for path in sorted(folder.glob("*/result.json"))]
    return [result for result in results if result.items() >= facts.items() and result["score"] is not None]


def circumstances(seconds: float, count: int) -> Result:
    return {
        "wall_seconds": round(seconds, 3),  # with compilation, where this run is the first of its kind
        "images_per_second": round(count / seconds, 3),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy", "scipy")},
    }
