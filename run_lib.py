"""One function per mode. Each checks what it needs before it starts, and reads from top to bottom."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import datasets
import evaluation
import likelihood
import losses
import sampling
from configs.runs import expand_starts, sweep_configs, unscored
from configs.validation import validate, validate_analysis, validate_batch
from core import files, parallel, plots
from core.diffusion import EpsFn
from core.errors import UserError
from evaluation import load_bench
from metrics import card, comparison, statistics, tally
from metrics.features import load_features
from metrics.labels import load_labeller
from metrics.results import GRID_SIZE, Result, folder_name
from metrics.statistics import fit_gaussian, require_enough
from metrics.tally import tally_split
from models import make_eps_fn, make_schedule
from models.foreign import ForeignCheckpoint, export_diffusers, load_foreign
from models.weights import fill, read_weights, save_weights
from sampling.generate import record_trajectory
from sampling.time_grid import AUTO_SPACING
from symmetry.critical import leading_times
from training import checkpoints, loop

TRAJECTORIES = 12  # how many images a film strip follows


def load_eps_fn(config: ConfigDict, workdir: str | Path) -> EpsFn:
    """The noise prediction of the EMA weights of config.eval.checkpoint (-1: the newest).

    Raises UserError where there is no such checkpoint or the workdir holds another network.
    """
    _, graphdef, ema = checkpoints.load_ema(config, Path(workdir))
    return make_eps_fn(graphdef, ema)


# --mode=prepare


def prepare(config: ConfigDict) -> None:
    """All that is slow before a first run: downloads, TFDS's files (with TensorFlow), the decoded training split."""
    validate(config)
    images = datasets.prepare(config).images
    print(f"{config.data.dataset}: {len(images)} training images of {list(images.shape[1:])} are ready")


# --mode=train


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains to training.n_iters, from the newest whole checkpoint in the workdir if there is one; see training.run."""
    validate(config)
    validate_batch(config)
    if config.sampling.spacing == AUTO_SPACING:
        raise UserError("sampling.spacing=auto is for eval, sweep and sample: training's snapshots have no trial")
    checkpoints.check_workdir(config, workdir)
    images = datasets.load(config, "train").images
    held_out = datasets.load(config, "test").images if config.training.eval_freq else None
    reached = loop.run(config, workdir, make_schedule(config), images, held_out)
    if reached >= config.training.n_iters:
        print(f"{workdir} is at step {reached} already; training.n_iters is {config.training.n_iters}")
    else:
        print(f"trained to step {config.training.n_iters}; checkpoints, metrics.jsonl and samples lie in {workdir}")


# --mode=fid_stats


def fid_stats(config: ConfigDict) -> None:
    """Of the training split: its Gaussian for late starts and, with eval.enable_fid, moments of features for scores."""
    validate(config)
    images = datasets.load(config, "train").images
    require_enough(images, config.sampling.rank)
    files.require_writable(statistics.stats_path(config, statistics.GAUSSIAN).parent)
    features = load_features(config, may_train=True) if config.eval.enable_fid else None
    labeller = load_labeller(config) if features else None

    gaussian = fit_gaussian(config, images)
    path = statistics.save_gaussian(config, gaussian, images)
    print(f"the Gaussian of {len(images)} images, {gaussian.captured:.1%} of the variance in its directions: {path}")
    if features:
        tally = tally_split(images, features, labeller, config.eval.feature_batch_size)
        reference = statistics.save_reference(config, features, tally, labeller)
        print(f"moments of their features, {features.note}: {reference}")


# --mode=eval and --mode=sweep


def evaluate(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> Result:
    """Draws eval.num_samples images as config.sampling says, scores them, and returns what result.json holds."""
    bench = load_bench(config, workdir, [config])
    result = evaluation.run(config, bench, workdir / eval_folder)
    print(card.card(result))
    if bench.bits_per_dim:
        print(likelihood.table(bench.bits_per_dim))
    print(f"results and samples lie in {workdir / eval_folder / folder_name(result)}")
    return result


def sweep(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> list[Result]:
    """Every sampler at every n_steps, from pure noise and from each late start, all from the same noise.

    A run whose result already lies in its folder is not drawn again.
    """
    validate(config)
    if not config.eval.enable_fid:
        raise UserError("--mode=sweep compares scores: it needs eval.enable_fid")
    if config.sampling.baseline:
        raise UserError(f"sampling.baseline={config.sampling.baseline!r} is for eval: a sweep takes sweep.baselines")
    starts = expand_starts(config.sweep.t_starts)
    runs = sweep_configs(config, config.sweep.n_steps, starts, config.sweep.baselines)
    bench, folder = load_bench(config, workdir, runs), workdir / eval_folder
    results = [evaluation.run_once(run, bench, folder) for run in runs]
    if not parallel.is_first():  # the report reads what the first process alone has written
        return results
    critical = leading_times(bench.gaussian.eigenvalues, bench.schedule) if bench.gaussian else {}
    table, starts = comparison.save_report(results, folder, critical), ", ".join(map(str, config.sweep.t_starts))
    print(f"{results[0]['score_name']}, lower is better; {results[0]['features']}")
    print(f"{config.eval.num_samples} samples a row, the same noise in every row; best of the late starts {starts}")
    print(f"{table}\nall runs and their sample grids: {folder}; pictures side by side: {folder / 'comparison.png'}")
    print(f"scores against the start: {folder / 'starts.png'}")
    return results


# --mode=score


def score(config: ConfigDict, workdir: Path, source: Path, reference: Path | None = None) -> Result:
    """Scores the images of a folder or an .npz against the statistics of the config, or against another such set."""
    validate(config)
    if reference is None and not config.eval.reference:
        statistics.require_stats(config, config.eval.features)
    for path in [source, *[reference] * (reference is not None)]:
        if not path.exists():
            raise UserError(f"no {path}: give a folder of PNG or JPG files, or an .npz of uint8 images")
    files.require_writable(workdir)
    features, labeller = load_features(config), load_labeller(config)
    if reference is None:
        against = statistics.load_reference(config, features, labeller)
    else:
        against = statistics.reference_of(tally.tally_images(config, features, labeller, reference)[0], reference)
    result = evaluation.score_images(config, features, labeller, against, source, workdir)
    print(card.card(result))
    return result


# --mode=sample


def sample(config: ConfigDict, workdir: Path, num: int, file_format: str = "png", trajectory: bool = False) -> Path:
    """Draws `num` images as config.sampling says, into PNGs or one npz ("npz"), and a grid of the first.

    trajectory: also a film strip of what the network predicts x_0 to be, each time it is asked. Returns the folder.
    """
    config = unscored(config, num)
    validate(config)
    if trajectory and sampling.nfe(config.sampling.sampler, config.sampling.n_steps) is None:
        raise UserError(f"--trajectory: {config.sampling.sampler} is adaptive, so its images do not share their times")
    bench = load_bench(config, workdir, [config])
    folder = workdir / "drawn" / folder_name(evaluation.describe(config, bench))
    timesteps, _ = evaluation.plan(config, bench)
    if trajectory:
        _save_trajectory(config, bench, timesteps, folder)

    images = evaluation.draw_all(config, bench, timesteps)
    if file_format == "npz":
        files.write_npz(folder / "samples.npz", {"images": images})
    else:
        for i, image in enumerate(images):
            plots.save_image(folder / "images" / f"{i:06d}.png", image)  # a folder that --mode=score can read
    plots.save_image(folder / "grid.png", plots.image_grid(images[:GRID_SIZE]))
    print(f"{num} images: {folder}")
    return folder


def compare(config: ConfigDict, workdir: Path, num: int) -> Path:
    """One picture: a row for every sampler of config.sweep without and with a late start, a column for every noise."""
    config = unscored(config, num)
    validate(config)
    runs = sweep_configs(config, [config.sampling.n_steps], [config.sampling.t_start])
    bench = load_bench(config, workdir, runs)
    rows = []
    for run in runs:
        timesteps, _ = evaluation.plan(run, bench)
        label = comparison.row_label(evaluation.describe(run, bench) | {"t_start": int(timesteps[0])})
        rows.append((label, evaluation.draw_all(run, bench, timesteps)))
    question = evaluation.describe(runs[-1], bench) | {"sampler": "-".join(["compare", *config.sweep.samplers])}
    path = workdir / "drawn" / f"{folder_name(question)}.png"
    plots.save_comparison(path, rows)
    print(f"{len(rows)} rows of the same {num} noises: {path}")
    return path


def _save_trajectory(config: ConfigDict, bench: evaluation.Bench, timesteps: np.ndarray, folder: Path) -> None:
    gaussian, num = bench.gaussian if config.sampling.gls else None, min(config.eval.num_samples, TRAJECTORIES)
    shape = datasets.image_shape(config)
    times, x0 = record_trajectory(config, bench.eps_fn, bench.schedule, gaussian, timesteps, shape, num)
    strips = np.asarray(datasets.to_uint8(x0, config.data.centered))
    files.write_npz(folder / "trajectory.npz", {"t": times, "predicted_x0": x0})
    plots.save_comparison(folder / "trajectory.png", [(f"image {i}", strips[:, i]) for i in range(num)])


# --mode=analyze


def analyze(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> Path:
    """Where symmetry breaks in the network of the workdir: see `symmetry.study.analyze`. Returns the report's path."""
    from symmetry import study  # here, since what it imports takes a third of a second that other modes should not cost

    validate_analysis(config)
    table, path = study.analyze(config, workdir, eval_folder)
    print(table)
    print(f"pictures, numbers and report.html lie in {path.parent}")
    return path


# --mode=import and --mode=export


def import_weights(config: ConfigDict, workdir: Path, source: Path) -> None:
    """Makes a checkpoint in a new workdir from a .npz of ours, a .pth of the paper's code or a folder of diffusers."""
    validate(config)
    if checkpoints.saved_steps(workdir):
        raise UserError(f"{workdir} holds checkpoints already: import into a new --workdir")
    foreign = _own_weights(config, source) if source.suffix == ".npz" else load_foreign(source, config)
    with checkpoints.only_writer(workdir):
        with checkpoints.saving(config, workdir) as save:
            save(parallel.replicate(losses.state_of(config, foreign.step, foreign.params, foreign.ema)))
        checkpoints.write_config(config, workdir)  # last: the workdir is whole when it is there
    print(f"imported {source} as the checkpoint of step {foreign.step} in {workdir}")


def _own_weights(config: ConfigDict, source: Path) -> ForeignCheckpoint:
    stored = read_weights(source)
    checkpoints.check_network(config, stored.config, source)
    params = fill(source, config, stored.arrays)
    return ForeignCheckpoint(stored.step, params, params)


def export_weights(config: ConfigDict, workdir: Path, destination: Path) -> None:
    """Writes the EMA weights of config.eval.checkpoint: a new .npz, or a folder that diffusers' UNet2DModel loads."""
    validate(config)
    if destination.suffix not in ("", ".npz"):
        raise UserError(f"{destination}: name a file that ends in .npz, or a folder, without an ending, for diffusers")
    if destination.exists():
        raise UserError(f"{destination} exists already; name a new one for the export")
    step, _, ema = checkpoints.load_ema(config, workdir)
    if destination.suffix == ".npz":
        save_weights(destination, config, step, ema)
    else:
        export_diffusers(destination, config, ema)
    print(f"exported step {step} of {workdir} to {destination}")
