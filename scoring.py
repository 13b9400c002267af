"""One evaluation run: draw images as a config says, score them, keep the result in a folder of its own."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import evaluation
import files
import parallel
import pilot
import plots
import protocol
import sampling
import sources
from diffusion import EpsFn, NoiseSchedule
from diversity import Labeller
from errors import UserError
from features import Features, rebatched
from protocol import Result
from sampling.generate import generate, grid_of, opens_with_history
from sampling.late_start import DataGaussian
from tallies import RESERVOIR, Tally

GRID_SIZE = 64  # how many images of a run are kept to be looked at
KEPT_EVERY = 180  # seconds between two saves of a run's partial result
PART, KEPT = "part.npz", "part_images.npy"  # in the folder of a run that is not finished


class Bench(NamedTuple):
    """What all runs of a sweep share, loaded once."""

    checkpoint_step: int
    weights_sha256: str
    eps_fn: EpsFn
    schedule: NoiseSchedule
    gaussian: DataGaussian | None
    gaussian_sha256: str | None
    features: Features | None
    labeller: Labeller | None
    reference: evaluation.Reference | None
    eval_loss: float | None
    bits_per_dim: Result | None = None  # what likelihood.measure returns


def load_gaussian(config: ConfigDict) -> tuple[DataGaussian, str]:
    """What late starts draw from, on all devices, and the SHA-256 of its file.

    Raises UserError as `evaluation.load_gaussian`.
    """
    path, gaussian = evaluation.stats_path(config, evaluation.GAUSSIAN), evaluation.load_gaussian(config)
    return parallel.replicate(gaussian), hashlib.sha256(path.read_bytes()).hexdigest()


def describe(config: ConfigDict, bench: Bench) -> Result:
    """The question that a run answers: all that its result depends on.

    What a trial is to choose (see `pilot`) is missing.
    """
    settings = config.sampling
    nfe = sampling.nfe(settings.sampler, settings.n_steps)
    return {
        "dataset": config.data.dataset,
        "checkpoint_step": bench.checkpoint_step,
        "weights_sha256": bench.weights_sha256,
        "sampler": settings.sampler,
        "n_steps": settings.n_steps,
        "nfe": nfe and nfe - (settings.baseline == "afs"),
        "gls": settings.gls,
        "chooses_start": pilot.chooses_start(config),
        "baseline": settings.baseline,
        "history": opens_with_history(config),
        "spacing": settings.spacing,
        "clip_x0": settings.clip_x0,
        "num_samples": config.eval.num_samples,
        "num_kept": config.eval.num_samples if config.eval.enable_sampling else min(GRID_SIZE, config.eval.num_samples),
        "seed": config.seed,
        "ema_rate": config.model.ema_rate,
        "rounding": protocol.ROUNDING,
        "reference_file": config.eval.reference or None,
        "classifier": bench.labeller.name if bench.labeller else None,
        **protocol.facts(bench.features, bench.reference),
        "gaussian_sha256": bench.gaussian_sha256 if pilot.needs_gaussian(config) else None,
        "eval_loss": bench.eval_loss,
        "bits_per_dim": bench.bits_per_dim,
    } | _facts_given(config, bench.schedule)


def _facts_given(config: ConfigDict, schedule: NoiseSchedule) -> Result:
    """Of the first and last time of the grid those that no trial is to choose."""
    if pilot.chooses_start(config):
        return {}
    if pilot.chooses_grid(config):
        return {"t_start": config.sampling.t_start if config.sampling.gls else schedule.num_timesteps - 1}
    return _grid_facts(grid_of(config, schedule, config.sampling.gls))


def _grid_facts(timesteps: np.ndarray) -> Result:
    return {"t_start": int(timesteps[0]), "t_last": int(timesteps[-1])}


def plan(config: ConfigDict, bench: Bench) -> tuple[np.ndarray, pilot.Choice | None]:
    """The time grid of a run, and how it was chosen where a trial chose it."""
    if not (pilot.chooses_start(config) or pilot.chooses_grid(config)):
        return grid_of(config, bench.schedule, config.sampling.gls), None
    choice = pilot.choose(config, bench.eps_fn, bench.schedule, bench.gaussian)
    return choice.timesteps, choice


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
        _own_labels(question),
        f"step{question['checkpoint_step']}",
        f"num{question['num_samples']}",
        f"kept{question['num_kept']}" if question["num_kept"] > GRID_SIZE else "",
        "loss" if question["eval_loss"] is not None else "",
        "bpd" if question["bits_per_dim"] else "",
        f"seed{question['seed']}",
    ]
    return "_".join(filter(None, parts))


def _own_labels(question: Result) -> str:
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


def run_once(config: ConfigDict, bench: Bench, folder: Path) -> Result:
    """The result that lies in the folder, or that of `run`."""
    return finished(describe(config, bench), folder) or run(config, bench, folder)


def run(config: ConfigDict, bench: Bench, folder: Path) -> Result:
    """Draws and scores eval.num_samples images; writes result.json, samples.png and samples.npz, result.json last.

    A trial that chooses the start or the grid comes first; result.json has it under "auto_start", and pilot.png. What
    is drawn so far is kept every KEPT_EVERY seconds, in memory and files that do not grow with the number of samples
    beyond those kept. A run that was killed goes on from there, to the same result.
    """
    question = describe(config, bench)
    folder = folder / folder_name(question)
    began = time.perf_counter()
    tally, seconds_before = _saved_part(folder, question) or (Tally(bench.features.dim if bench.features else 0), 0.0)
    kept = _open_kept(folder, (question["num_kept"], *datasets.image_shape(config)), new=tally.count == 0)
    saved = began
    timesteps, choice = plan(config, bench)
    size = min(config.eval.feature_batch_size, config.eval.num_samples)
    for pixels, count in rebatched(draw(config, bench, timesteps, tally.count), size):
        if len(room := kept[tally.count : tally.count + count]):
            room[:] = parallel.all_rows(pixels)[: len(room)]
        observe(tally, bench.features, bench.labeller, pixels, count)
        if time.perf_counter() - saved > KEPT_EVERY and parallel.is_first():
            kept.flush()
            _save_part(folder, question, tally, seconds_before + time.perf_counter() - began)
            saved = time.perf_counter()
    scores = evaluation.scores(tally, bench.reference) if bench.features else {"score": None}
    seconds = seconds_before + time.perf_counter() - began

    result = question | _grid_facts(timesteps) | {"auto_start": choice and choice.facts()}
    result |= scores | _circumstances(seconds, config.eval.num_samples)
    if choice and choice.curve:
        pilot.draw_curve(folder / "pilot.png", choice)
    files.write_npz(folder / "samples.npz", {"images": kept})
    plots.save_image(folder / "samples.png", plots.image_grid(kept[:GRID_SIZE]))
    files.write_json(folder / "result.json", result)
    if parallel.is_first():
        for name in (PART, KEPT):
            (folder / name).unlink(missing_ok=True)
    return result


def observe(tally: Tally, features: Features | None, labeller: Labeller | None, pixels: jax.Array, count: int) -> None:
    """Adds the first `count` of uint8 images [B, H, W, C] on the devices to a tally, the same on every process."""
    found = parallel.all_rows(features.extract(pixels))[:count] if features else np.zeros((count, 0))
    tally.update(found, labeller.count(pixels, count) if labeller else ())


def _circumstances(seconds: float, count: int) -> Result:
    return {
        "wall_seconds": round(seconds, 3),  # with compilation, where this run is the first of its kind
        "images_per_second": round(count / seconds, 3),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy", "scipy")},
    }


def _saved_part(folder: Path, question: Result) -> tuple[Tally, float] | None:
    """What a killed run left, and the seconds that it took, if it was a run of this question."""
    if not (folder / PART).exists() or not (folder / KEPT).exists():
        return None
    part = files.read_npz(folder / PART, required={"question", "seconds"})
    if str(part["question"]) != json.dumps(question):
        return None
    return Tally.of_arrays(part), float(part["seconds"])


def _save_part(folder: Path, question: Result, tally: Tally, seconds: float) -> None:
    facts = {"question": np.asarray(json.dumps(question)), "seconds": np.asarray(seconds)}
    files.write_npz(folder / PART, tally.arrays() | facts)


def _open_kept(folder: Path, shape: tuple[int, ...], new: bool) -> np.ndarray:
    """The images that are kept, uint8 of `shape`, in a file rather than in memory; only the first process has one."""
    if not parallel.is_first():
        return np.zeros(shape, np.uint8)
    if not new:
        return np.lib.format.open_memmap(folder / KEPT, "r+")
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / KEPT, "w+", np.uint8, shape)


def draw(config: ConfigDict, bench: Bench, timesteps: np.ndarray, first: int = 0) -> Iterator[tuple[jax.Array, int]]:
    """eval.num_samples uint8 images, from index `first` on, in batches on the devices, as `generate`, with progress.

    Raises UserError where a sample is not finite: rounded to a grey level, it would pass for an image.
    """
    gaussian, num = bench.gaussian if config.sampling.gls else None, config.eval.num_samples
    name = folder_name(describe(config, bench))
    with tqdm(total=num, desc=name, unit="image", initial=first) as progress:
        size = config.eval.batch_size
        for x0, count in generate(config, bench.eps_fn, bench.schedule, gaussian, timesteps, num, size, first):
            if not jnp.isfinite(x0).all():
                raise UserError(f"{name}: samples hold NaN or infinity; did the training diverge?")
            yield datasets.to_uint8(x0, config.data.centered), count
            progress.update(count)


def draw_all(config: ConfigDict, bench: Bench, timesteps: np.ndarray) -> np.ndarray:
    """The same as one array [num_samples, H, W, C]."""
    return np.concatenate([parallel.all_rows(pixels)[:count] for pixels, count in draw(config, bench, timesteps)])


# Images from elsewhere


def tally_images(config: ConfigDict, features: Features, labeller: Labeller | None, path: Path) -> tuple[Tally, str]:
    """What the images of a folder or .npz leave in one pass, and the SHA-256 of their pixels.

    Raises UserError for a single image, and as `sources.open_images`.
    """
    total, images = sources.open_images(path, datasets.image_shape(config))
    if total < 2:
        raise UserError(f"{path}: holds one image; a covariance needs at least 2")
    tally, digest = Tally(features.dim, stride=-(-total // RESERVOIR)), hashlib.sha256()

    def hashed():
        for batch, count in images:
            digest.update(batch.tobytes())
            yield batch, count

    with tqdm(total=total, desc=path.name, unit="image") as progress:
        for pixels, count in rebatched(hashed(), min(config.eval.feature_batch_size, total)):
            observe(tally, features, labeller, pixels, count)
            progress.update(count)
    return tally, digest.hexdigest()


def score_images(
    config: ConfigDict,
    features: Features,
    labeller: Labeller | None,
    reference: evaluation.Reference,
    path: Path,
    folder: Path,
) -> Result:
    """Scores a folder or .npz of images; writes result.json into a folder named after them and their hash."""
    began = time.perf_counter()
    tally, digest = tally_images(config, features, labeller, path)
    question = {
        "dataset": config.data.dataset,
        "source": str(path),
        "source_sha256": digest,
        "num_samples": tally.count,
        "classifier": labeller.name if labeller else None,
        **protocol.facts(features, reference),
    }
    result = question | evaluation.scores(tally, reference)
    result |= _circumstances(time.perf_counter() - began, tally.count)
    parts = [path.stem, digest[:8], reference.digest[:8], _own_labels(question)]
    files.write_json(folder / "_".join(filter(None, parts)) / "result.json", result)
    return result
