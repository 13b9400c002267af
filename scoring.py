"""One evaluation run: draw images as a config says, score them, keep the result in a folder of its own."""

import hashlib
import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import evaluation
import files
import parallel
import plots
import sampling
from diffusion import EpsFn, NoiseSchedule
from errors import UserError
from parallel import replicate
from sampling.generate import generate
from sampling.late_start import DataGaussian

GRID_SIZE = 64  # how many images of a run are kept to be looked at

Result = dict[str, Any]


class Bench(NamedTuple):
    """What all runs of a sweep share, loaded once."""

    checkpoint_step: int
    eps_fn: EpsFn
    schedule: NoiseSchedule
    gaussian: DataGaussian | None
    gaussian_sha256: str | None
    features: evaluation.Features | None
    reference: evaluation.Reference | None
    eval_loss: float | None


def load_gaussian(config: ConfigDict) -> tuple[DataGaussian, str]:
    """What late starts draw from, on all devices, and the SHA-256 of its file.

    Raises UserError if the file is broken or belongs to images of another shape.
    """
    path, size = evaluation.stats_path(config, evaluation.GAUSSIAN), config.data.image_size
    gaussian = DataGaussian.load(path)
    if gaussian.image_shape != (size, size, config.data.num_channels):
        raise UserError(f"{path} is for images of shape {gaussian.image_shape}, not those of this config")
    return replicate(gaussian), hashlib.sha256(path.read_bytes()).hexdigest()


def describe(config: ConfigDict, bench: Bench) -> Result:
    """The question that a run answers: all that its result depends on but the weights, which belong to the workdir."""
    settings = config.sampling
    return {
        "dataset": config.data.dataset,
        "checkpoint_step": bench.checkpoint_step,
        "sampler": settings.sampler,
        "n_steps": settings.n_steps,
        "nfe": sampling.nfe(settings.sampler, settings.n_steps),
        "gls": settings.gls,
        "t_start": settings.t_start if settings.gls else bench.schedule.num_timesteps - 1,
        "spacing": settings.spacing,
        "clip_x0": settings.clip_x0,
        "num_samples": config.eval.num_samples,
        "num_kept": config.eval.num_samples if config.eval.enable_sampling else min(GRID_SIZE, config.eval.num_samples),
        "seed": config.seed,
        "score_name": bench.features.score_name if bench.features else None,
        "features": bench.features.note if bench.features else None,
        "reference_sha256": bench.reference.digest if bench.reference else None,
        "gaussian_sha256": bench.gaussian_sha256 if settings.gls else None,
        "eval_loss": bench.eval_loss,
    }


def folder_name(question: Result) -> str:
    """One for every question: what is not the default is part of the name."""
    start = f"gls{question['t_start']}" if question["gls"] else "full"
    parts = [question["sampler"], f"n{question['n_steps']}", start]
    parts += [question["spacing"]] * (question["spacing"] != "linear") + ["clipped"] * question["clip_x0"]
    parts += [f"step{question['checkpoint_step']}", f"num{question['num_samples']}", f"seed{question['seed']}"]
    return "_".join(parts)


def finished(question: Result, folder: Path) -> Result | None:
    """The result that lies in the folder, if it answers this question."""
    path = folder / folder_name(question) / "result.json"
    stored = files.read_json(path) if path.exists() else {}
    return stored if stored.items() >= question.items() else None


def run(config: ConfigDict, bench: Bench, folder: Path) -> Result:
    """Draws and scores eval.num_samples images; writes result.json, samples.png and samples.npz, result.json last."""
    question = describe(config, bench)
    folder = folder / folder_name(question)
    began = time.perf_counter()
    moments = evaluation.Moments(bench.features.dim) if bench.features else None
    kept: list[np.ndarray] = []
    for pixels, count in draw(config, bench):
        if moments:
            own = parallel.own_rows(len(pixels))
            moments.update(parallel.local_rows(bench.features.extract(pixels))[: max(count - own.start, 0)])
        if (room := question["num_kept"] - sum(map(len, kept))) > 0:
            kept.append(parallel.all_rows(pixels)[: min(count, room)])
    seconds = time.perf_counter() - began

    result = question | {
        "score": evaluation.distance(moments.of_all_processes(), bench.reference) if moments else None,
        "wall_seconds": round(seconds, 3),  # with compilation, where this run is the first of its kind
        "images_per_second": round(config.eval.num_samples / seconds, 3),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy", "scipy")},
    }
    samples = np.concatenate(kept)
    files.write_npz(folder / "samples.npz", {"images": samples})
    plots.save_image(folder / "samples.png", plots.image_grid(samples[:GRID_SIZE]))
    files.write_json(folder / "result.json", result)
    return result


def draw(config: ConfigDict, bench: Bench) -> Iterator[tuple[jax.Array, int]]:
    """eval.num_samples uint8 images in batches on the devices, as `generate`, with a progress bar.

    Raises UserError where a sample is not finite: rounded to a grey level, it would pass for an image.
    """
    gaussian, num = bench.gaussian if config.sampling.gls else None, config.eval.num_samples
    name = folder_name(describe(config, bench))
    with tqdm(total=num, desc=name, unit="image") as progress:
        for x0, count in generate(config, bench.eps_fn, bench.schedule, gaussian, num, config.eval.batch_size):
            if not jnp.isfinite(x0).all():
                raise UserError(f"{name}: samples hold NaN or infinity; did the training diverge?")
            yield datasets.to_uint8(x0, config.data.centered), count
            progress.update(count)


def draw_all(config: ConfigDict, bench: Bench) -> np.ndarray:
    """The same as one array [num_samples, H, W, C]."""
    return np.concatenate([parallel.all_rows(pixels)[:count] for pixels, count in draw(config, bench)])
