"""One function per mode. Each checks what it needs before it starts, and reads from top to bottom."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import checkpoints
import datasets
import evaluation
import files
import losses
import parallel
import plots
import sampling
import scoring
import sweeping
import tables
import training
from diffusion import EpsFn, NoiseSchedule
from errors import UserError
from models import make_eps_fn
from models.from_torch import export_diffusers, load_foreign
from parallel import replicate, round_up, shard_batch
from sampling.generate import record_trajectory
from sampling.late_start import DataGaussian
from validation import validate

TRAJECTORIES = 12  # how many images a film strip follows


def make_schedule(config: ConfigDict) -> NoiseSchedule:
    model = config.model
    return NoiseSchedule.linear(model.beta_min / model.num_scales, model.beta_max / model.num_scales, model.num_scales)


def load_eps_fn(config: ConfigDict, workdir: str | Path) -> EpsFn:
    """The noise prediction of the EMA weights of config.eval.checkpoint (-1: the newest).

    Raises UserError where there is no such checkpoint or the workdir holds another network.
    """
    _, graphdef, ema = checkpoints.load_ema(config, Path(workdir))
    return make_eps_fn(graphdef, ema)


# --mode=train


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains to training.n_iters, from the newest whole checkpoint in the workdir if there is one; see training.run."""
    validate(config)
    checkpoints.check_workdir(config, workdir)
    images = datasets.load(config, "train").images
    held_out = datasets.load(config, "test").images if config.training.eval_freq else None
    reached = training.run(config, workdir, make_schedule(config), images, held_out)
    if reached >= config.training.n_iters:
        print(f"{workdir} is at step {reached} already; training.n_iters is {config.training.n_iters}")
    else:
        print(f"trained to step {config.training.n_iters}; checkpoints, metrics.jsonl and samples lie in {workdir}")


# --mode=fid_stats


def fid_stats(config: ConfigDict) -> None:
    """One pass over the training split: its Gaussian for late starts and, with eval.enable_fid, moments for scores."""
    validate(config)
    images = datasets.load(config, "train").images
    path = evaluation.stats_path(config, evaluation.GAUSSIAN)
    files.require_writable(path.parent)
    features = evaluation.load_features(config, may_train=True) if config.eval.enable_fid else None
    moments = evaluation.Moments(features.dim) if features else None
    pixels = evaluation.Moments(images[0].size)
    batch_size = round_up(config.eval.batch_size)
    for batch, count in tqdm(datasets.in_order(images, batch_size), "statistics", -(-len(images) // batch_size)):
        if features:
            moments.update(parallel.local_rows(features.extract(shard_batch(batch)))[:count])
        in_range = datasets.to_network_range(batch[:count], config.data.centered)
        pixels.update(np.asarray(in_range).reshape(count, pixels.dim))

    DataGaussian.from_moments(pixels.of_all_processes(), images.shape[1:]).save(path)
    print(f"the Gaussian of {len(images)} images: {path}")
    if features:
        reference = evaluation.save_reference(config, features, moments.of_all_processes())
        print(f"moments of their features, {features.note}: {reference}")


# --mode=eval and --mode=sweep


def evaluate(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> scoring.Result:
    """Draws eval.num_samples images as config.sampling says, scores them, and returns what result.json holds."""
    bench = _prepare(config, workdir, [config])
    result = scoring.run(config, bench, workdir / eval_folder)
    print(tables.aligned(("field", "value"), [(name, str(value)) for name, value in result.items()]))
    print(f"results and samples lie in {workdir / eval_folder / scoring.folder_name(result)}")
    return result


def sweep(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> list[scoring.Result]:
    """Every sampler at every n_steps, from pure noise and from each late start, all from the same noise.

    A run whose result already lies in its folder is not drawn again.
    """
    validate(config)
    if not config.eval.enable_fid:
        raise UserError("--mode=sweep compares scores: it needs eval.enable_fid")
    runs = sweeping.sweep_configs(config, config.sweep.n_steps, config.sweep.t_starts)
    bench, folder = _prepare(config, workdir, runs), workdir / eval_folder
    results = [
        scoring.finished(scoring.describe(run, bench), folder) or scoring.run(run, bench, folder) for run in runs
    ]
    if not parallel.is_first():  # the report reads what the first process alone has written
        return results
    table, starts = sweeping.save_report(results, folder), ", ".join(map(str, config.sweep.t_starts))
    print(f"{results[0]['score_name']}, lower is better; {results[0]['features']}")
    print(f"{config.eval.num_samples} samples a row, the same noise in every row; best of the late starts {starts}")
    print(f"{table}\nall runs and their sample grids: {folder}; pictures side by side: {folder / 'comparison.png'}")
    return results


def _prepare(config: ConfigDict, workdir: Path, runs: Sequence[ConfigDict]) -> scoring.Bench:
    """What the runs share. Mistakes in them and in the files that they need are found before the network is loaded."""
    for run in (config, *runs):
        validate(run)
    checkpoints.require(config, workdir)
    late, scored = any(run.sampling.gls for run in runs), config.eval.enable_fid
    evaluation.require_stats(config, *[evaluation.GAUSSIAN] * late, *[config.eval.features] * scored)
    gaussian, digest = scoring.load_gaussian(config) if late else (None, None)
    features = evaluation.load_features(config) if scored else None
    reference = evaluation.load_reference(config, features) if scored else None
    held_out = datasets.load(config, "test").images if config.eval.enable_loss else None

    step, graphdef, ema = checkpoints.load_ema(config, workdir)
    eps_fn, schedule = make_eps_fn(graphdef, ema), make_schedule(config)
    loss = None if held_out is None else training.mean_loss(config, eps_fn, schedule, held_out)
    return scoring.Bench(step, eps_fn, schedule, gaussian, digest, features, reference, loss)


# --mode=sample


def sample(config: ConfigDict, workdir: Path, num: int, file_format: str = "png", trajectory: bool = False) -> Path:
    """Draws `num` images as config.sampling says, into PNGs or one npz ("npz"), and a grid of the first.

    trajectory: also a film strip of what the network predicts x_0 to be, each time it is asked. Returns the folder.
    """
    config = _unscored(config, num)
    validate(config)
    if trajectory and sampling.nfe(config.sampling.sampler, config.sampling.n_steps) is None:
        raise UserError(f"--trajectory: {config.sampling.sampler} is adaptive, so its images do not share their times")
    bench = _prepare(config, workdir, [config])
    folder = workdir / "drawn" / scoring.folder_name(scoring.describe(config, bench))
    if trajectory:
        _save_trajectory(config, bench, folder)

    images = scoring.draw_all(config, bench)
    if file_format == "npz":
        files.write_npz(folder / "samples.npz", {"images": images})
    else:
        for i, image in enumerate(images):
            plots.save_image(folder / f"{i:06d}.png", image)
    plots.save_image(folder / "grid.png", plots.image_grid(images[: scoring.GRID_SIZE]))
    print(f"{num} images: {folder}")
    return folder


def compare(config: ConfigDict, workdir: Path, num: int) -> Path:
    """One picture: a row for every sampler of config.sweep without and with a late start, a column for every noise."""
    config = _unscored(config, num)
    validate(config)
    n_steps, t_start = config.sampling.n_steps, config.sampling.t_start
    runs = sweeping.sweep_configs(config, [n_steps], [t_start])
    bench = _prepare(config, workdir, runs)
    rows = [(sweeping.row_label(scoring.describe(run, bench)), scoring.draw_all(run, bench)) for run in runs]
    path = workdir / "drawn" / f"compare_n{n_steps}_gls{t_start}_num{num}_seed{config.seed}.png"
    plots.save_comparison(path, rows)
    print(f"{len(rows)} rows of the same {num} noises: {path}")
    return path


def _unscored(config: ConfigDict, num: int) -> ConfigDict:
    """Pictures need no statistics but a late start's."""
    config = config.copy_and_resolve_references()
    config.eval.update(enable_fid=False, enable_loss=False, num_samples=num)
    return config


def _save_trajectory(config: ConfigDict, bench: scoring.Bench, folder: Path) -> None:
    gaussian, num = bench.gaussian if config.sampling.gls else None, min(config.eval.num_samples, TRAJECTORIES)
    times, x0 = record_trajectory(config, bench.eps_fn, bench.schedule, gaussian, num)
    strips = np.asarray(datasets.to_uint8(x0, config.data.centered))
    files.write_npz(folder / "trajectory.npz", {"t": times, "predicted_x0": x0})
    plots.save_comparison(folder / "trajectory.png", [(f"image {i}", strips[:, i]) for i in range(num)])


# --mode=import and --mode=export


def import_weights(config: ConfigDict, workdir: Path, source: Path) -> None:
    """Makes a checkpoint in a new workdir from a .pth of the paper's code or a folder of a diffusers UNet2DModel."""
    validate(config)
    if any(workdir.glob("checkpoints/*")):
        raise UserError(f"{workdir} holds checkpoints already: import into a new --workdir")
    foreign = load_foreign(source, config)
    with checkpoints.only_writer(workdir), checkpoints.saving(config, workdir) as save:
        checkpoints.write_config(config, workdir)
        save(replicate(losses.state_of(config, foreign.step, foreign.params, foreign.ema)))
    print(f"imported {source} as the checkpoint of step {foreign.step} in {workdir}")


def export_weights(config: ConfigDict, workdir: Path, destination: Path) -> None:
    """Writes the EMA weights of config.eval.checkpoint as a folder that diffusers' UNet2DModel loads."""
    validate(config)
    step, _, ema = checkpoints.load_ema(config, workdir)
    export_diffusers(destination, config, ema)
    print(f"exported step {step} of {workdir} to {destination}")
