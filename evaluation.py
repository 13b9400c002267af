"""One evaluation run: draw images as a config says, score them, keep the result in a folder of its own."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import likelihood
import sampling
from configs.validation import validate
from core import files, parallel, plots
from core.diffusion import EpsFn, NoiseSchedule
from core.errors import UserError
from metrics import figures, frechet, results, scores, statistics
from metrics.features import Features, classifier_path, load_features, rebatched
from metrics.labels import Labeller, load_labeller
from metrics.results import GRID_SIZE, Result, circumstances, finished, folder_name, own_labels
from metrics.statistics import load_reference, stats_path
from metrics.tally import Tally, observe, tally_images
from models import make_eps_fn, make_schedule
from models.weights import digest
from sampling import auto_start
from sampling.auto_start import Axes
from sampling.generate import generate, grid_of, opens_with_history
from sampling.late_start import DataGaussian
from training import checkpoints, loop

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
    reference: frechet.Reference | None
    eval_loss: float | None
    bits_per_dim: Result | None = None  # what likelihood.measure returns


def load_bench(config: ConfigDict, workdir: Path, runs: Sequence[ConfigDict]) -> Bench:
    """What the runs share. Mistakes in them and in the files that they need are found before the network is loaded."""
    for run in (config, *runs):
        validate(run)
    checkpoints.require(config, workdir)
    fitted, scored = any(map(auto_start.needs_gaussian, runs)), config.eval.enable_fid
    if scored and config.eval.num_samples < 2:
        raise UserError("eval.num_samples=1 is not allowed: a covariance needs at least 2")
    own_reference = scored and not config.eval.reference
    statistics.require_stats(config, *[statistics.GAUSSIAN] * fitted, *[config.eval.features] * own_reference)
    gaussian, sha256 = load_gaussian(config) if fitted else (None, None)
    features, labeller = (load_features(config), load_labeller(config)) if scored else (None, None)
    reference = statistics.load_reference(config, features, labeller) if scored else None
    held_out = datasets.load(config, "test").images if config.eval.enable_loss else None
    coded = datasets.load(config, config.eval.bpd_dataset).images if config.eval.enable_bpd else None

    step, graphdef, ema = checkpoints.load_ema(config, workdir)
    eps_fn, schedule = make_eps_fn(graphdef, ema), make_schedule(config)
    loss = None if held_out is None else loop.mean_loss(config, eps_fn, schedule, held_out)
    coded = None if coded is None else datasets.spread(coded, config.eval.bpd_num_images)
    bits = None if coded is None else likelihood.measure(config, eps_fn, schedule, coded)
    weights = digest(ema)
    return Bench(step, weights, eps_fn, schedule, gaussian, sha256, features, labeller, reference, loss, bits)


def feature_axes(config: ConfigDict, gaussian: DataGaussian) -> tuple[Callable[[jax.Array], np.ndarray], Axes]:
    """A function from x0 on the devices to features along the data's axes, [B, k] in float64, and the data there."""
    own = config.copy_and_resolve_references()
    own.eval.update(features="classifier", reference="")
    if classifier_path(own).exists() and stats_path(own, "classifier").exists():
        features = load_features(own)
        reference = load_reference(own, features)
        mean, (variances, axes) = reference.mean, np.linalg.eigh(reference.cov)

        def extract(x0):
            return parallel.all_rows(features.extract(datasets.to_uint8(x0, config.data.centered)))
    else:
        mean, variances, axes = (
            np.asarray(part, np.float64) for part in (gaussian.mean, gaussian.eigenvalues, gaussian.eigenvectors)
        )

        def extract(x0):
            return parallel.all_rows(x0).reshape(len(x0), -1)

    return lambda x0: extract(x0) @ axes, Axes(mean @ axes, np.sqrt(np.maximum(variances, 0)))


def load_gaussian(config: ConfigDict) -> tuple[DataGaussian, str]:
    """What late starts draw from, on all devices, and the SHA-256 of its file.

    Raises UserError as `evaluation.load_gaussian`.
    """
    path, gaussian = statistics.stats_path(config, statistics.GAUSSIAN), statistics.load_gaussian(config)
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
        "chooses_start": auto_start.chooses_start(config),
        "baseline": settings.baseline,
        "history": opens_with_history(config),
        "spacing": settings.spacing,
        "clip_x0": settings.clip_x0,
        "num_samples": config.eval.num_samples,
        "num_kept": config.eval.num_samples if config.eval.enable_sampling else min(GRID_SIZE, config.eval.num_samples),
        "seed": config.seed,
        "ema_rate": config.model.ema_rate,
        "rounding": results.ROUNDING,
        "reference_file": config.eval.reference or None,
        "classifier": bench.labeller.name if bench.labeller else None,
        **results.facts(bench.features, bench.reference),
        "gaussian_sha256": bench.gaussian_sha256 if auto_start.needs_gaussian(config) else None,
        "eval_loss": bench.eval_loss,
        "bits_per_dim": bench.bits_per_dim,
    } | _facts_given(config, bench.schedule)


def _facts_given(config: ConfigDict, schedule: NoiseSchedule) -> Result:
    """Of the first and last time of the grid those that no trial is to choose."""
    if auto_start.chooses_start(config):
        return {}
    if auto_start.chooses_grid(config):
        return {"t_start": config.sampling.t_start if config.sampling.gls else schedule.num_timesteps - 1}
    return _grid_facts(grid_of(config, schedule, config.sampling.gls))


def _grid_facts(timesteps: np.ndarray) -> Result:
    return {"t_start": int(timesteps[0]), "t_last": int(timesteps[-1])}


def plan(config: ConfigDict, bench: Bench) -> tuple[np.ndarray, auto_start.Choice | None]:
    """The time grid of a run, and how it was chosen where a trial chose it."""
    if not (auto_start.chooses_start(config) or auto_start.chooses_grid(config)):
        return grid_of(config, bench.schedule, config.sampling.gls), None
    axes = feature_axes(config, bench.gaussian) if auto_start.chooses_start(config) else None
    shape = datasets.image_shape(config)
    choice = auto_start.choose(config, bench.eps_fn, bench.schedule, bench.gaussian, shape, axes)
    return choice.timesteps, choice


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
    found = scores.scores(tally, bench.reference) if bench.features else {"score": None}
    seconds = seconds_before + time.perf_counter() - began

    result = question | _grid_facts(timesteps) | {"auto_start": choice and choice.facts()}
    result |= found | circumstances(seconds, config.eval.num_samples)
    if choice and choice.curve:
        figures.draw_curve(folder / "pilot.png", choice)
    files.write_npz(folder / "samples.npz", {"images": kept})
    plots.save_image(folder / "samples.png", plots.image_grid(kept[:GRID_SIZE]))
    files.write_json(folder / "result.json", result)
    if parallel.is_first():
        for name in (PART, KEPT):
            (folder / name).unlink(missing_ok=True)
    return result


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
        size, shape = config.eval.batch_size, datasets.image_shape(config)
        for x0, count in generate(config, bench.eps_fn, bench.schedule, gaussian, timesteps, shape, num, size, first):
            if not jnp.isfinite(x0).all():
                raise UserError(f"{name}: samples hold NaN or infinity; did the training diverge?")
            yield datasets.to_uint8(x0, config.data.centered), count
            progress.update(count)


def draw_all(config: ConfigDict, bench: Bench, timesteps: np.ndarray) -> np.ndarray:
    """The same as one array [num_samples, H, W, C]."""
    return np.concatenate([parallel.all_rows(pixels)[:count] for pixels, count in draw(config, bench, timesteps)])


def score_images(
    config: ConfigDict,
    features: Features,
    labeller: Labeller | None,
    reference: frechet.Reference,
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
        **results.facts(features, reference),
    }
    result = question | scores.scores(tally, reference)
    result |= circumstances(time.perf_counter() - began, tally.count)
    parts = [path.stem, digest[:8], reference.digest[:8], own_labels(question)]
    files.write_json(folder / "_".join(filter(None, parts)) / "result.json", result)
    return result
