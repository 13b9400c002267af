"""One function per mode. Each checks what it needs before it starts, and reads from top to bottom."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import checkpoints
import datasets
import evaluation
import files
import likelihood
import losses
import parallel
import pilot
import plots
import protocol
import sampling
import scoring
import sweeping
import training
from diffusion import EpsFn
from diversity import Labeller, load_labeller
from eigenpairs import ROWS
from errors import UserError
from features import Features, load_features
from keys import key_for
from models import make_eps_fn, make_schedule
from models.from_torch import ForeignCheckpoint, export_diffusers, load_foreign
from models.weights import digest, fill, read_weights, save_weights
from moments import EXACT_ROWS, Moments
from sampling.generate import record_trajectory
from sampling.late_start import EXACT_UP_TO, DataGaussian
from sampling.time_grid import AUTO_SPACING, AUTO_START
from symmetry.critical import leading_times
from tallies import RESERVOIR, Tally
from validation import validate, validate_analysis, validate_batch

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
    reached = training.run(config, workdir, make_schedule(config), images, held_out)
    if reached >= config.training.n_iters:
        print(f"{workdir} is at step {reached} already; training.n_iters is {config.training.n_iters}")
    else:
        print(f"trained to step {config.training.n_iters}; checkpoints, metrics.jsonl and samples lie in {workdir}")


# --mode=fid_stats


def fid_stats(config: ConfigDict) -> None:
    """Of the training split: its Gaussian for late starts and, with eval.enable_fid, moments of features for scores."""
    validate(config)
    images = datasets.load(config, "train").images
    _require_enough(images, config.sampling.rank)
    files.require_writable(evaluation.stats_path(config, evaluation.GAUSSIAN).parent)
    features = load_features(config, may_train=True) if config.eval.enable_fid else None
    labeller = load_labeller(config) if features else None

    gaussian = _fit_gaussian(config, images)
    path = evaluation.save_gaussian(config, gaussian, images)
    print(f"the Gaussian of {len(images)} images, {gaussian.captured:.1%} of the variance in its directions: {path}")
    if features:
        tally = _tally(images, features, labeller, config.eval.feature_batch_size)
        reference = evaluation.save_reference(config, features, tally, labeller)
        print(f"moments of their features, {features.note}: {reference}")


def _require_enough(images: np.ndarray, rank: int) -> None:
    if len(images) < 2:
        raise UserError("the training split is one image: a covariance needs at least 2")
    dim, most = images[0].size, min(images[0].size, len(images) - 1)
    if dim > EXACT_UP_TO and rank > most:
        raise UserError(f"sampling.rank={rank} is too many for {len(images)} images of dimension {dim}: at most {most}")


def _fit_gaussian(config: ConfigDict, images: np.ndarray) -> DataGaussian:
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


def _tally(images: np.ndarray, features: Features, labeller: Labeller | None, batch_size: int) -> Tally:
    tally, size = Tally(features.dim, groups=1, stride=-(-len(images) // RESERVOIR)), parallel.round_up(batch_size)
    for batch, _ in tqdm(datasets.in_order(images, size), "features", -(-len(images) // size)):
        count = min(size, len(images) - tally.count)
        scoring.observe(tally, features, labeller, parallel.shard_batch(batch), count)
    return tally


# --mode=eval and --mode=sweep


def evaluate(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> scoring.Result:
    """Draws eval.num_samples images as config.sampling says, scores them, and returns what result.json holds."""
    bench = load_bench(config, workdir, [config])
    result = scoring.run(config, bench, workdir / eval_folder)
    print(protocol.card(result))
    if bench.bits_per_dim:
        print(likelihood.table(bench.bits_per_dim))
    print(f"results and samples lie in {workdir / eval_folder / scoring.folder_name(result)}")
    return result


def sweep(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> list[scoring.Result]:
    """Every sampler at every n_steps, from pure noise and from each late start, all from the same noise.

    A run whose result already lies in its folder is not drawn again.
    """
    validate(config)
    if not config.eval.enable_fid:
        raise UserError("--mode=sweep compares scores: it needs eval.enable_fid")
    if config.sampling.baseline:
        raise UserError(f"sampling.baseline={config.sampling.baseline!r} is for eval: a sweep takes sweep.baselines")
    starts = sweeping.expand_starts(config.sweep.t_starts)
    runs = sweeping.sweep_configs(config, config.sweep.n_steps, starts, config.sweep.baselines)
    bench, folder = load_bench(config, workdir, runs), workdir / eval_folder
    results = [scoring.run_once(run, bench, folder) for run in runs]
    if not parallel.is_first():  # the report reads what the first process alone has written
        return results
    critical = leading_times(bench.gaussian.eigenvalues, bench.schedule) if bench.gaussian else {}
    table, starts = sweeping.save_report(results, folder, critical), ", ".join(map(str, config.sweep.t_starts))
    print(f"{results[0]['score_name']}, lower is better; {results[0]['features']}")
    print(f"{config.eval.num_samples} samples a row, the same noise in every row; best of the late starts {starts}")
    print(f"{table}\nall runs and their sample grids: {folder}; pictures side by side: {folder / 'comparison.png'}")
    print(f"scores against the start: {folder / 'starts.png'}")
    return results


def load_bench(config: ConfigDict, workdir: Path, runs: Sequence[ConfigDict]) -> scoring.Bench:
    """What the runs share. Mistakes in them and in the files that they need are found before the network is loaded."""
    for run in (config, *runs):
        validate(run)
    checkpoints.require(config, workdir)
    fitted, scored = any(map(pilot.needs_gaussian, runs)), config.eval.enable_fid
    if scored and config.eval.num_samples < 2:
        raise UserError("eval.num_samples=1 is not allowed: a covariance needs at least 2")
    own_reference = scored and not config.eval.reference
    evaluation.require_stats(config, *[evaluation.GAUSSIAN] * fitted, *[config.eval.features] * own_reference)
    gaussian, sha256 = scoring.load_gaussian(config) if fitted else (None, None)
    features, labeller = (load_features(config), load_labeller(config)) if scored else (None, None)
    reference = evaluation.load_reference(config, features, labeller) if scored else None
    held_out = datasets.load(config, "test").images if config.eval.enable_loss else None
    coded = datasets.load(config, config.eval.bpd_dataset).images if config.eval.enable_bpd else None

    step, graphdef, ema = checkpoints.load_ema(config, workdir)
    eps_fn, schedule = make_eps_fn(graphdef, ema), make_schedule(config)
    loss = None if held_out is None else training.mean_loss(config, eps_fn, schedule, held_out)
    coded = None if coded is None else datasets.spread(coded, config.eval.bpd_num_images)
    bits = None if coded is None else likelihood.measure(config, eps_fn, schedule, coded)
    weights = digest(ema)
    return scoring.Bench(step, weights, eps_fn, schedule, gaussian, sha256, features, labeller, reference, loss, bits)


# --mode=score


def score(config: ConfigDict, workdir: Path, source: Path, reference: Path | None = None) -> scoring.Result:
    """Scores the images of a folder or an .npz against the statistics of the config, or against another such set."""
    validate(config)
    if reference is None and not config.eval.reference:
        evaluation.require_stats(config, config.eval.features)
    for path in [source, *[reference] * (reference is not None)]:
        if not path.exists():
            raise UserError(f"no {path}: give a folder of PNG or JPG files, or an .npz of uint8 images")
    files.require_writable(workdir)
    features, labeller = load_features(config), load_labeller(config)
    if reference is None:
        against = evaluation.load_reference(config, features, labeller)
    else:
        against = evaluation.reference_of(scoring.tally_images(config, features, labeller, reference)[0], reference)
    result = scoring.score_images(config, features, labeller, against, source, workdir)
    print(protocol.card(result))
    return result


# --mode=sample


def sample(config: ConfigDict, workdir: Path, num: int, file_format: str = "png", trajectory: bool = False) -> Path:
    """Draws `num` images as config.sampling says, into PNGs or one npz ("npz"), and a grid of the first.

    trajectory: also a film strip of what the network predicts x_0 to be, each time it is asked. Returns the folder.
    """
    config = _unscored(config, num)
    validate(config)
    if trajectory and sampling.nfe(config.sampling.sampler, config.sampling.n_steps) is None:
        raise UserError(f"--trajectory: {config.sampling.sampler} is adaptive, so its images do not share their times")
    bench = load_bench(config, workdir, [config])
    folder = workdir / "drawn" / scoring.folder_name(scoring.describe(config, bench))
    timesteps, _ = scoring.plan(config, bench)
    if trajectory:
        _save_trajectory(config, bench, timesteps, folder)

    images = scoring.draw_all(config, bench, timesteps)
    if file_format == "npz":
        files.write_npz(folder / "samples.npz", {"images": images})
    else:
        for i, image in enumerate(images):
            plots.save_image(folder / "images" / f"{i:06d}.png", image)  # a folder that --mode=score can read
    plots.save_image(folder / "grid.png", plots.image_grid(images[: scoring.GRID_SIZE]))
    print(f"{num} images: {folder}")
    return folder


def compare(config: ConfigDict, workdir: Path, num: int) -> Path:
    """One picture: a row for every sampler of config.sweep without and with a late start, a column for every noise."""
    config = _unscored(config, num)
    validate(config)
    runs = sweeping.sweep_configs(config, [config.sampling.n_steps], [config.sampling.t_start])
    bench = load_bench(config, workdir, runs)
    rows = []
    for run in runs:
        timesteps, _ = scoring.plan(run, bench)
        label = sweeping.row_label(scoring.describe(run, bench) | {"t_start": int(timesteps[0])})
        rows.append((label, scoring.draw_all(run, bench, timesteps)))
    question = scoring.describe(runs[-1], bench) | {"sampler": "-".join(["compare", *config.sweep.samplers])}
    path = workdir / "drawn" / f"{scoring.folder_name(question)}.png"
    plots.save_comparison(path, rows)
    print(f"{len(rows)} rows of the same {num} noises: {path}")
    return path


def _unscored(config: ConfigDict, num: int) -> ConfigDict:
    """Pictures need no statistics but a late start's."""
    config = config.copy_and_resolve_references()
    config.eval.update(enable_fid=False, enable_loss=False, enable_bpd=False, num_samples=num)
    return config


def _save_trajectory(config: ConfigDict, bench: scoring.Bench, timesteps: np.ndarray, folder: Path) -> None:
    gaussian, num = bench.gaussian if config.sampling.gls else None, min(config.eval.num_samples, TRAJECTORIES)
    times, x0 = record_trajectory(config, bench.eps_fn, bench.schedule, gaussian, timesteps, num)
    strips = np.asarray(datasets.to_uint8(x0, config.data.centered))
    files.write_npz(folder / "trajectory.npz", {"t": times, "predicted_x0": x0})
    plots.save_comparison(folder / "trajectory.png", [(f"image {i}", strips[:, i]) for i in range(num)])


# --mode=analyze


def analyze(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> Path:
    """Where symmetry breaks in the network of the workdir: pictures, numbers and a report in workdir/analysis.

    Experiments and runs whose numbers are there already are not made again. Returns the report's path.
    """
    import analysis  # here, since what it imports takes a third of a second that other modes should not cost

    validate_analysis(config)
    own, settings, folder = _analysis_config(config), config.analysis, workdir / "analysis"
    starts = [t_start for t_start in sweeping.expand_starts(own.sweep.t_starts) if t_start != AUTO_START]
    few = sweeping.sweep_configs(own, (max(own.sweep.n_steps),), starts)
    full_length = _full_length_runs(own)
    bench = load_bench(own, workdir, [own, *few, *full_length])
    facts = {"dataset": config.data.dataset, "weights_sha256": bench.weights_sha256}
    images = datasets.spread(datasets.load(config, "train").images, settings.num_images)
    x0 = datasets.to_network_range(jnp.asarray(images), config.data.centered)
    results = {
        "full_length": _scored(full_length, bench, folder / "scores", "full length"),
        "scores": _scores_there(config, facts, workdir / eval_folder)
        or _scored(few, bench, folder / "scores", "few steps"),
        "auto": [run for run in scoring.all_finished(facts, workdir / eval_folder) if run.get("chooses_start")]
        or _chosen_starts(config, own, bench),
    }
    labeller = load_labeller(config)
    measured = {name: settings[name] for name in ("num_times", "num_eigenvalues", "n_steps")}
    subject = analysis.Subject(
        bench.eps_fn,
        bench.schedule,
        bench.gaussian,
        x0,
        config.data.centered,
        labeller and (lambda images: np.asarray(labeller.scores(images)).argmax(axis=1)),
        key_for(config.seed, "analysis"),
        **measured,
    )
    question = facts | measured | {"seed": config.seed, "num_images": settings.num_images}
    question |= {"gaussian_sha256": bench.gaussian_sha256, "classifier": labeller.name if labeller else None}
    title = f"Symmetry breaking: {config.data.dataset}, step {bench.checkpoint_step}"
    print(analysis.run(subject, results, question, folder, title))
    print(f"pictures, numbers and report.html lie in {folder}")
    return folder / "report.html"


SCORED = ("ddpm", "ddim")  # the samplers whose scores an analysis shows against the start
AS_IN_THE_PAPER = {"baseline": "", "spacing": "linear", "clip_x0": False}


def _analysis_config(config: ConfigDict) -> ConfigDict:
    """What the runs of an analysis share. They are scored unless eval.enable_fid or analysis.score_samples says no."""
    own = _unscored(config, max(config.analysis.score_samples, 1))
    own.eval.enable_fid = config.eval.enable_fid and config.analysis.score_samples > 0
    own.sampling.update(gls=True, n_steps=1, t_start=own.model.num_scales - 1, **AS_IN_THE_PAPER)
    own.sweep.samplers = SCORED
    return own


def _chosen_starts(config: ConfigDict, own: ConfigDict, bench: scoring.Bench) -> list[scoring.Result]:
    """What a run with t_start = auto says of its start, for an evaluation of the config's own size."""
    found = []
    for sampler in SCORED:
        run = own.copy_and_resolve_references()
        run.eval.num_samples = config.eval.num_samples
        run.sampling.update(sampler=sampler, n_steps=max(own.sweep.n_steps), t_start=AUTO_START)
        _, choice = scoring.plan(run, bench)
        found.append(scoring.describe(run, bench) | {"auto_start": choice.facts()})
    return found


def _full_length_runs(own: ConfigDict) -> list[ConfigDict]:
    """One step for every t: from pure noise, and from each of analysis.score_starts with all that lie below it."""
    last = own.model.num_scales - 1
    starts = [(last, False), *[(t_start, True) for t_start in own.analysis.score_starts]]
    runs = []
    for sampler in SCORED:
        for t_start, gls in starts:
            run = own.copy_and_resolve_references()
            run.sampling.update(sampler=sampler, n_steps=t_start + 1, t_start=t_start, gls=gls)
            runs.append(run)
    return runs


def _scored(runs: Sequence[ConfigDict], bench: scoring.Bench, folder: Path, name: str) -> list[scoring.Result]:
    """The results of runs, each drawn and scored unless it is finished; none without something to score by."""
    if bench.features is None:
        return []
    results = []
    with tqdm(total=sum(run.sampling.n_steps for run in runs), desc=name, unit="step") as progress:
        for run in runs:
            results.append(scoring.run_once(run, bench, folder))
            progress.update(run.sampling.n_steps)
    return results


def _scores_there(config: ConfigDict, facts: scoring.Result, folder: Path) -> list[scoring.Result]:
    """DDPM's and DDIM's scores that an eval or a sweep left."""
    facts = facts | AS_IN_THE_PAPER | {"seed": config.seed, "num_samples": config.eval.num_samples}
    return [result for result in scoring.all_finished(facts, folder) if result["sampler"] in SCORED]


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
