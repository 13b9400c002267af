"""One function per mode. Each function checks its inputs before long work starts."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import datasets
import evaluation
import likelihood
import losses
import sampling
from configs import stored
from configs.runs import components_of, expand_starts, plan_configs, sweep_configs, without_scores
from configs.validation import validate, validate_analysis, validate_batch
from core import files, parallel, plots, tables
from core.diffusion import Denoiser
from core.errors import UserError
from evaluation import EvalRun
from images.content import KINDS
from metrics import card, comparison, figures, statistics, tally
from metrics.features import load_features
from metrics.labels import load_labeller
from metrics.results import GRID_SIZE, Result, folder_name
from models import make_denoiser
from models.edm_file import load_edm
from models.foreign import ForeignCheckpoint, export_diffusers, load_foreign
from models.guided_file import load_guided
from models.score_sde_file import load_score_sde
from models.unet2d_file import load_unet2d
from models.weights import fill, read_weights, save_weights
from sampling import plan as planning
from sampling import start_file
from sampling.auto_start import chooses_grid
from sampling.late_start import ONE
from sampling.time_grid import SPACINGS
from symmetry.critical import leading_times
from training import checkpoints, loop

TRAJECTORIES = 12  # images in a film strip


def load_denoiser(workdir: str | Path, step: int = -1) -> Denoiser:
    """Loads the EMA weights of the newest checkpoint of a workdir, or of the checkpoint of a given step, as a denoiser.

    The config is the one stored in the workdir. Raises UserError if there is no such checkpoint.
    """
    config = stored.get_config(workdir)
    config.eval.checkpoint = step
    _, graphdef, ema = checkpoints.load_ema(config, Path(workdir))
    return make_denoiser(config, graphdef, ema)


# --mode=prepare


def prepare(config: ConfigDict) -> None:
    """Does all slow work before the first run: downloads the data, prepares them with TFDS, and decodes the images."""
    validate(config)
    images = datasets.prepare(config).images
    print(f"{config.data.dataset}: {len(images)} training images of {list(images.shape[1:])} are ready")


# --mode=train


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains to step training.n_iters, from the newest undamaged checkpoint in the workdir, if any; see `loop.run`."""
    validate(config)
    validate_batch(config)
    if chooses_grid(config):
        spacing = config.sampling.spacing
        raise UserError(f"sampling.spacing={spacing} is for eval, sweep and sample; training cannot use it")
    datasets.require_images(config, "training")
    if config.model.label_dim:
        raise UserError("model.label_dim must be 0: networks with classes can be imported, but not trained here")
    checkpoints.check_workdir(config, workdir)
    images = datasets.load(config, "train").images
    held_out = datasets.load(config, "test").images if config.training.eval_freq else None
    first_step = loop.run(config, workdir, images=images, held_out=held_out)
    if first_step >= config.training.n_iters:
        print(f"{workdir} is at step {first_step} already; training.n_iters is {config.training.n_iters}")
    else:
        print(f"trained to step {config.training.n_iters}; checkpoints, metrics.jsonl and samples are in {workdir}")


# --mode=fid_stats


def fid_stats(config: ConfigDict) -> None:
    """Saves statistics of the training split.

    These are its Gaussian, the mixtures of sampling.components and sweep.components, and, if eval.enable_fid is true,
    the moments of its features. Latents have no features.
    """
    validate(config)
    split = datasets.load(config, "train")
    images = split.images
    statistics.require_enough(images, config.sampling.rank)
    mixtures = sorted({config.sampling.components, *components_of(config)} - {ONE})
    for components in mixtures:
        statistics.require_components(components, split)
    files.require_writable(statistics.stats_path(config, statistics.GAUSSIAN).parent)
    scored = config.eval.enable_fid and not datasets.is_latents(config)
    features = load_features(config, may_train=True) if scored else None
    labeller = load_labeller(config) if features else None

    gaussian = statistics.fit_gaussian(images, rank=config.sampling.rank, centered=config.data.centered)
    path = statistics.save_gaussian(config, gaussian, images)
    print(
        f"Gaussian of {len(images)} images; kept eigenvectors explain {gaussian.captured:.1%} of the variance: {path}"
    )
    for components in mixtures:
        mixture, names = statistics.fit_mixture(gaussian, split, components, centered=config.data.centered)
        path = statistics.save_mixture(config, components, mixture, names)
        sizes = np.rint(mixture.weights * len(images)).astype(int)
        print(
            f"mixture of {len(names)} Gaussians ({components}), of {sizes.min()} to {sizes.max()} images each: {path}"
        )
    if features:
        batch_size = config.eval.feature_batch_size
        accumulated = tally.tally_split(images, features, labeller, batch_size=batch_size)
        path = statistics.save_reference(config, features, accumulated, labeller=labeller)
        print(f"moments of their features, {features.note}: {path}")


# --mode=eval and --mode=sweep


def evaluate(config: ConfigDict, workdir: Path, eval_folder: str | Path = "eval") -> Result:
    """Draws eval.num_samples images with config.sampling, scores them, and returns the contents of result.json."""
    run = EvalRun(config, evaluation.load_context(config, workdir, [config]))
    result = run.draw_and_score(workdir / eval_folder)
    print(card.card(result))
    if run.context.bits_per_dim:
        print(likelihood.table(run.context.bits_per_dim))
    print(f"results and samples are in {workdir / eval_folder / folder_name(result)}")
    return result


def sweep(config: ConfigDict, workdir: Path, eval_folder: str | Path = "eval") -> list[Result]:
    """Runs every sampler at every n_steps, from pure noise and from each late start, all with the same noise.

    A run whose result is already stored is not repeated.
    """
    validate(config)
    if not config.eval.enable_fid:
        raise UserError("--mode=sweep compares scores: it needs eval.enable_fid")
    if config.sampling.baseline:
        raise UserError(f"sampling.baseline={config.sampling.baseline!r} is for eval: a sweep takes sweep.baselines")
    configs = sweep_configs(
        config, config.sweep.n_steps, expand_starts(config.sweep.t_starts), baselines=config.sweep.baselines
    )
    context = evaluation.load_context(config, workdir, configs)
    folder = workdir / eval_folder
    results = [EvalRun(run, context).result(folder) for run in configs]
    if not parallel.is_first():  # the report reads files that only the first process has
        return results
    critical = leading_times(context.gaussian.eigenvalues, context.denoiser.schedule) if context.gaussian else {}
    table = comparison.save_report(results, folder, critical)
    starts = ", ".join(map(str, config.sweep.t_starts))
    print(f"{results[0]['score_name']}, lower is better; {results[0]['features']}")
    print(f"{config.eval.num_samples} samples a row, the same noise in every row; best of the late starts {starts}")
    print(f"{table}\nall runs and their sample grids: {folder}; pictures side by side: {folder / 'comparison.png'}")
    print(f"scores against the start: {folder / 'starts.png'}; to explore in a browser: {folder / 'explorer.html'}")
    return results


# --mode=plan


def plan(config: ConfigDict, workdir: Path, budget: int) -> Path:
    """Finds the best solver, components and start for `budget` network calls per image. Returns the path of plan.json.

    All values of sampling.components whose statistics fid_stats has saved are tried. The time grid is sampling.spacing.
    """
    validate(config)
    if not config.eval.enable_fid:
        raise UserError("--mode=plan compares images with the data: it needs eval.enable_fid")
    if config.sampling.spacing not in SPACINGS:
        raise UserError(f"--mode=plan needs a fixed time grid: sampling.spacing={config.sampling.spacing!r}")
    if not 1 <= budget <= config.model.num_scales:
        raise UserError(f"--budget={budget} network calls must be from 1 to model.num_scales={config.model.num_scales}")
    steps = planning.steps_within(budget)
    runs = plan_configs(config, steps, statistics.fitted_components(config))
    folder = workdir / "plans" / f"budget{budget}"
    files.require_writable(folder)
    context = evaluation.load_context(config, workdir, runs)
    found = planning.find(runs, evaluation.trials(runs, context))
    facts = {
        "budget": budget,
        "dataset": config.data.dataset,
        "weights_sha256": context.weights_sha256,
        "features": context.features.name,
        "best": found.entries[0].facts(),
        "runner_up": found.entries[1].facts(),
        "margin": found.margin,
        "margin_error": found.margin_error,
        "network_calls": found.network_calls,
        "entries": [entry.facts() for entry in found.entries],
    }
    path = folder / "plan.json"
    files.write_json(path, facts)
    plots.attempt(figures.draw_plan, path.with_suffix(".png"), facts)
    print(_plan_text(facts, path))
    return path


def _plan_text(facts: dict[str, Any], path: Path) -> str:
    """Returns the best entries of a plan as a table, the margin, the cost, and how to use the file."""
    rows = [
        [
            *(str(entry[name]) for name in ("sampler", "n_steps", "nfe", "components", "t_start", "images")),
            "not finite" if entry["distance"] is None else f"{entry['distance']:.3g}",
        ]
        for entry in facts["entries"][:5]
    ]
    table = tables.aligned(("sampler", "n", "NFE", "K", "start", "images", "distance to the data"), rows)
    calls = facts["network_calls"]
    margin = "unknown"
    if facts["margin"] is not None:
        margin = f"{facts['margin']:.2g} ± {facts['margin_error']:.2g}"
    return (
        f"{table}\nmargin of the best over the runner-up: {margin}\n"
        f"cost: {calls:,} network calls, those of {calls // facts['budget']:,} images\n"
        f"use it with --plan={path}"
    )


# --mode=score


def score(config: ConfigDict, workdir: Path, source: Path, reference: Path | None = None) -> Result:
    """Scores the images of a folder or an array file against `reference` images or, without them, the config's data."""
    validate(config)
    datasets.require_images(config, "--mode=score")
    if reference is None and not config.eval.reference:
        statistics.require_stats(config, config.eval.features)
    for path in (source, reference):
        if path is not None and not path.exists():
            raise UserError(f"no {path}: give {KINDS}")
    files.require_writable(workdir)
    images = tally.open_images(config, source)
    others = tally.open_images(config, reference) if reference else None
    features = load_features(config)
    labeller = load_labeller(config)
    if others is None:
        against = statistics.load_reference(config, features, labeller)
    else:
        accumulated, _ = tally.tally_images(config, features, labeller, others)
        against = statistics.reference_of(accumulated, others.path)
    result = evaluation.score_images(
        config, features=features, labeller=labeller, reference=against, images=images, folder=workdir
    )
    print(card.card(result))
    return result


# --mode=sample


def sample(config: ConfigDict, workdir: Path, num: int, file_format: str = "png", trajectory: bool = False) -> Path:
    """Draws `num` images with config.sampling, writes them and a grid of the first GRID_SIZE, and returns the folder.

    file_format: "png" for one PNG per image, or "npz" for one file. trajectory: whether film strips are also written;
    they show the x_0 predicted at each network call.
    """
    config = without_scores(config, num)
    validate(config)
    if trajectory or file_format == "png":
        datasets.require_images(config, "--format=png" if file_format == "png" else "--trajectory")
    if trajectory and sampling.nfe(config.sampling.sampler, config.sampling.n_steps) is None:
        raise UserError(f"--trajectory: {config.sampling.sampler} is adaptive, so its images have different times")
    run = EvalRun(config, evaluation.load_context(config, workdir, [config]))
    folder = workdir / "drawn" / run.name
    timesteps, _ = run.plan()
    images = run.images(timesteps)
    if file_format == "npz":
        files.write_npz(folder / "samples.npz", {"images": images})
    else:
        for i, image in enumerate(images):
            plots.save_image(folder / "images" / f"{i:06d}.png", image)  # a folder that --mode=score can read
    if trajectory:
        _save_trajectory(run, timesteps, folder)
    if not datasets.is_latents(config):
        plots.attempt(plots.save_grid, folder / "grid.png", images[:GRID_SIZE])
    print(f"{num} images: {folder}")
    return folder


def compare(config: ConfigDict, workdir: Path, num: int) -> Path:
    """Draws a picture with one row for each sampler of config.sweep and each start.

    All images of a column start from the same noise. An .npz file of the same name contains the images, one array per
    row. Returns the path of the picture.
    """
    config = without_scores(config, num)
    validate(config)
    datasets.require_images(config, "--compare")
    configs = sweep_configs(config, [config.sampling.n_steps], [config.sampling.t_start])
    context = evaluation.load_context(config, workdir, configs)
    runs = [EvalRun(run_config, context) for run_config in configs]
    rows = []
    for run in runs:
        timesteps, _ = run.plan()
        label = comparison.row_label(run.settings | {"t_start": int(timesteps[0])})
        rows.append((label, run.images(timesteps)))
    name = folder_name(runs[-1].settings | {"sampler": "-".join(["compare", *config.sweep.samplers])})
    path = workdir / "drawn" / f"{name}.png"
    files.write_npz(path.with_suffix(".npz"), dict(rows))
    plots.attempt(plots.save_comparison, path, rows)
    print(f"{len(rows)} rows of images from the same {num} samples of noise: {path} (arrays: {path.stem}.npz)")
    return path


def _save_trajectory(run: EvalRun, timesteps: np.ndarray, folder: Path) -> None:
    num = min(run.config.eval.num_samples, TRAJECTORIES)
    times, x0 = run.trajectory(timesteps, num)
    strips = np.asarray(datasets.to_uint8(x0, run.config.data.centered))
    files.write_npz(folder / "trajectory.npz", {"t": times, "predicted_x0": x0})
    rows = [(f"image {i}", strips[:, i]) for i in range(num)]
    plots.attempt(plots.save_comparison, folder / "trajectory.png", rows)


# --mode=analyze


def analyze(config: ConfigDict, workdir: Path, eval_folder: str | Path = "eval") -> Path:
    """Measures where symmetry breaks in the network of the workdir (`symmetry.study`). Returns the report's path."""
    from symmetry import study  # imported here, because it takes a third of a second and other modes do not need it

    validate_analysis(config)
    table, path = study.analyze(config, workdir, eval_folder)
    print(table)
    print(f"pictures, numbers and report.html are in {path.parent}")
    return path


# --mode=import and --mode=export


def import_weights(config: ConfigDict, workdir: Path, source: Path) -> None:
    """Makes a checkpoint in a new workdir from a file of weights.

    The file is an .npz of this project, a .pth of the paper's code, a diffusers folder, a .pkl of EDM, a .pt of
    improved- or guided-diffusion, a flax checkpoint of score_sde (without an extension), or a .pth of score_sde's
    PyTorch port.
    """
    validate(config)
    if checkpoints.saved_steps(workdir):
        raise UserError(f"{workdir} holds checkpoints already: import into a new --workdir")
    foreign = _read_source(source, config)
    with checkpoints.only_writer(workdir):
        with checkpoints.saving(config, workdir) as save:
            save(parallel.replicate(losses.state_of(config, foreign.step, foreign.params, ema=foreign.ema)))
        checkpoints.write_config(config, workdir)  # written last, so a workdir with a config is complete
    print(f"imported {source} as the checkpoint of step {foreign.step} in {workdir}")
    print(f"statistics and scores are of data.dataset={config.data.dataset}")


def _read_source(source: Path, config: ConfigDict) -> ForeignCheckpoint:
    """Reads weights; the file extension determines the format.

    If the file has only one set of weights, it is used both as the raw and as the EMA weights.
    """
    step = 0
    if source.suffix == ".npz":
        own = read_weights(source)
        checkpoints.check_network(config, own.config, source)
        step = own.step
        params = fill(source, config, own.arrays)
    elif config.model.name == "unet2d":
        params = load_unet2d(source, config)
    elif source.suffix == ".pkl":
        params = load_edm(source, config)
    elif source.suffix == ".pt":
        params = load_guided(source, config)
    elif source.is_file() and (source.suffix == "" or (source.suffix == ".pth" and config.model.name == "songunet")):
        step, params = load_score_sde(source, config)
    else:
        return load_foreign(source, config)
    return ForeignCheckpoint(step, params, params)


def export_weights(config: ConfigDict, workdir: Path, destination: Path) -> None:
    """Writes the EMA weights of config.eval.checkpoint: a new .npz, or a folder that diffusers' UNet2DModel loads."""
    validate(config)
    if destination.suffix not in ("", ".npz"):
        raise UserError(f"{destination}: name a file that ends in .npz, or a folder, without an ending, for diffusers")
    _require_new(destination)
    step, _, ema = checkpoints.load_ema(config, workdir)
    if destination.suffix == ".npz":
        save_weights(destination, config, step, params=ema)
    else:
        export_diffusers(destination, config, ema)
    print(f"exported step {step} of {workdir} to {destination}")


def export_start(config: ConfigDict, workdir: Path, destination: Path) -> None:
    """Writes the late start of config.sampling as a new .safetensors file; docs/start_file.md specifies it."""
    config = without_scores(config, 1)
    validate(config)
    settings = config.sampling
    start_file.require_followed(settings.sampler, config.model.prediction)
    if not settings.gls:
        raise UserError("--what=start exports a late start: give --gls, and --t_start")
    if settings.clip_x0 or settings.baseline not in ("", "no_history"):
        raise UserError("--what=start exports neither sampling.clip_x0 nor sampling.baseline, except no_history")
    if destination.suffix != ".safetensors":
        raise UserError(f"{destination}: name a file that ends in .safetensors for --what=start")
    _require_new(destination)
    run = EvalRun(config, evaluation.load_context(config, workdir, [config]))
    context = run.context
    timesteps, _ = run.plan()
    statistics_path = statistics.stats_path(config, statistics.mixture_kind(settings.components))
    start_file.save(
        destination,
        run.mixture,
        context.denoiser.schedule,
        timesteps,
        sampler=settings.sampler,
        with_history=not settings.baseline,
        prediction=config.model.prediction,
        value_range=(-1.0, 1.0) if config.data.centered else (0.0, 1.0),
        origin={
            "data": {"dataset": config.data.dataset, "statistics_sha256": files.file_sha256(statistics_path)},
            "network": {"step": context.checkpoint_step, "weights_sha256": context.weights_sha256},
        },
    )
    print(f"exported the late start at t = {timesteps[0]} to {destination}")


def _require_new(destination: Path) -> None:
    if destination.exists():
        raise UserError(f"{destination} exists already; name a new one for the export")


# --mode=verify


def verify_sampler(source: str) -> bool:
    """Tests the sampler "module:function", prints the report, and returns whether the sampler passes."""
    from sampling.verification.verify import sampler_of, verify  # imported here, because scipy's integrators take 0.4 s

    report = verify(sampler_of(source))
    print(report.text)
    return report.passed
