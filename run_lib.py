"""One function per mode. Each checks what it needs before it starts, and reads from top to bottom."""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import checkpoints
import datasets
import evaluation
import files
import losses
import plots
import sampling
import scoring
import tables
from diffusion import EpsFn, NoiseSchedule
from errors import UserError
from metrics import MetricsWriter, Rate
from models import make_eps_fn
from models.from_torch import export_diffusers, load_foreign
from parallel import replicate, round_up, shard_batch
from sampling.generate import generate
from sampling.generate import trajectory as record_trajectory
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
    return make_eps_fn(*checkpoints.load_ema(config, Path(workdir)))


# --mode=train


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains to training.n_iters, from the newest checkpoint in the workdir if there is one."""
    training = config.training
    validate(config)
    images = datasets.load(config, "train").images
    held_out = datasets.load(config, "test").images if training.eval_freq else None
    checkpoints.claim(config, workdir)

    graphdef, state = losses.create_state(config)
    train_step = losses.make_train_step(config, graphdef, make_schedule(config))
    with checkpoints.open_manager(workdir, keep_period=training.snapshot_freq) as manager:
        state = checkpoints.restore(manager, replicate(state))
        first = int(state.step)
        batches, steps_per_second = datasets.train_batches(images, config, first), Rate(first)
        progress = tqdm(range(first + 1, training.n_iters + 1), "train", training.n_iters, initial=first, unit="step")
        in_flight = None
        with MetricsWriter(workdir, first) as writer:
            for step in progress:
                state, metrics = train_step(state, shard_batch(next(batches)))
                jax.block_until_ready(in_flight)  # one step ahead keeps the device busy; more would pile up batches
                in_flight = metrics
                due = functools.partial(_due, step, training.n_iters)

                if due(training.log_freq):
                    values = {name: float(value) for name, value in metrics.items()}
                    rate = steps_per_second(step) * training.batch_size
                    writer.write(step, values | {"images_per_second": rate})
                    progress.set_postfix(loss=f"{values['loss']:.4f}")

                if due(training.eval_freq):
                    writer.write(step, {"eval_loss": _mean_loss(config, make_eps_fn(graphdef, state.ema), held_out)})

                if due(training.snapshot_freq) or due(training.snapshot_freq_for_preemption):
                    checkpoints.save(manager, state)
                if due(training.snapshot_freq) and training.snapshot_sampling:
                    _save_snapshot(config, make_eps_fn(graphdef, state.ema), workdir / f"samples/step_{step:07d}.png")
    print(f"trained to step {training.n_iters}; checkpoints, metrics.jsonl and samples lie in {workdir}")


def _due(step: int, last_step: int, frequency: int) -> bool:
    """Whether what happens every `frequency` steps (0: never) happens now; the last step is always one of them."""
    return frequency > 0 and (step % frequency == 0 or step == last_step)


def _mean_loss(config: ConfigDict, eps_fn: EpsFn, images: np.ndarray) -> float:
    """The loss over a split, at the same times and with the same noise at every call."""
    schedule, rng, values = make_schedule(config), jax.random.key(config.seed), []
    for batch, count in datasets.in_order(images, round_up(config.eval.batch_size)):
        batch_rng, centered = jax.random.fold_in(rng, len(values)), config.data.centered
        values.append(losses.eval_loss(eps_fn, schedule, shard_batch(batch), batch_rng, centered)[:count])
    return float(np.mean(np.concatenate(values)))


def _save_snapshot(config: ConfigDict, eps_fn: EpsFn, path: Path) -> None:
    size = config.training.sampling_size
    [(x0, count)] = generate(config, eps_fn, make_schedule(config), None, size, batch_size=size)
    plots.save_image(path, plots.image_grid(np.asarray(datasets.to_uint8(x0, config.data.centered))[:count]))


# --mode=fid_stats


def fid_stats(config: ConfigDict) -> None:
    """One pass over the training split: moments of its features for scores, its Gaussian for late starts."""
    validate(config)
    images = datasets.load(config, "train").images
    features = evaluation.load_features(config)
    moments = evaluation.Moments(features.dim)

    def pixels() -> Iterator[np.ndarray]:
        with tqdm(total=len(images), desc="statistics", unit="image") as progress:
            for batch, count in datasets.in_order(images, round_up(config.eval.batch_size)):
                moments.update(np.asarray(features.extract(shard_batch(batch)))[:count])
                yield np.asarray(datasets.to_network_range(batch[:count], config.data.centered))
                progress.update(count)

    gaussian, gaussian_path = DataGaussian.fit(pixels()), evaluation.stats_path(config, "gaussian")
    gaussian.save(gaussian_path)
    path = evaluation.save_reference(config, features, moments)
    print(f"statistics of {moments.count} images, {features.note}:\n  {path}\n  {gaussian_path}")


# --mode=eval and --mode=sweep


def evaluate(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> scoring.Result:
    """Draws eval.num_samples images as config.sampling says, scores them, and returns what result.json holds."""
    bench = _prepare(config, workdir, late=config.sampling.gls)
    result = scoring.run(config, bench, workdir / eval_folder)
    print(tables.aligned(("field", "value"), [(name, str(value)) for name, value in result.items()]))
    print(f"results and samples lie in {workdir / eval_folder / scoring.folder_name(result)}")
    return result


def sweep(config: ConfigDict, workdir: Path, eval_folder: str = "eval") -> list[scoring.Result]:
    """Every sampler at every n_steps, from pure noise and from each late start, all from the same noise.

    A run whose result already lies in its folder is not drawn again.
    """
    bench, folder = _prepare(config, workdir, late=True), workdir / eval_folder
    results = []
    for run_config in scoring.sweep_configs(config, config.sweep.n_steps, config.sweep.t_starts):
        question = scoring.describe(run_config, bench)
        results.append(scoring.finished(question, folder) or scoring.run(run_config, bench, folder))

    files.write_json(folder / "sweep.json", {"results": results})
    columns = ("sampler", "n_steps", "nfe", "gls", "t_start", "score")
    files.write_text(folder / "sweep.csv", tables.to_csv(columns, [[r[name] for name in columns] for r in results]))
    pairs = scoring.compare(results)
    table = scoring.comparison_table(pairs)
    files.write_text(folder / "table.txt", table + "\n")
    plots.save_comparison(folder / "comparison.png", scoring.comparison_rows(pairs, folder))
    starts = ", ".join(map(str, config.sweep.t_starts))
    print(f"{results[0]['score_name']}, lower is better; {results[0]['features']}")
    print(f"{config.eval.num_samples} samples a row, the same noise in every row; best of the late starts {starts}")
    print(f"{table}\nall runs and their sample grids: {folder}; pictures side by side: {folder / 'comparison.png'}")
    return results


def _prepare(config: ConfigDict, workdir: Path, *, late: bool) -> scoring.Bench:
    """Finds every mistake that can be found before the network is loaded."""
    validate(config)
    step = checkpoints.require(config, workdir)
    evaluation.require_stats(config, *["gaussian"] * late, *[config.eval.features] * config.eval.enable_fid)
    held_out = datasets.load(config, "test").images if config.eval.enable_loss else None
    eps_fn = load_eps_fn(config, workdir)
    loss = None if held_out is None else _mean_loss(config, eps_fn, held_out)
    return scoring.prepare(config, step, eps_fn, make_schedule(config), late, loss)


# --mode=sample


def sample(config: ConfigDict, workdir: Path, num: int, file_format: str, trajectory: bool, compare: bool) -> None:
    """Draws `num` images as config.sampling says, into PNGs or one npz, and a grid of the first.

    trajectory: also a film strip of what the network predicts x_0 to be, each time it is asked. compare: instead one
    picture, a row for every sampler of config.sweep without and with a late start, a column for every noise.
    """
    if trajectory and sampling.nfe(config.sampling.sampler, config.sampling.n_steps) is None:
        raise UserError(f"--trajectory: {config.sampling.sampler} is adaptive, so its images do not share their times")
    config.eval.update(enable_fid=False, enable_loss=False)  # pictures need no statistics but a late start's
    bench = _prepare(config, workdir, late=config.sampling.gls or compare)
    if compare:
        rows = []
        for row_config in scoring.sweep_configs(config, [config.sampling.n_steps], [config.sampling.t_start]):
            label = scoring.row_label(scoring.describe(row_config, bench))
            rows.append((label, scoring.draw_all(row_config, bench, num)))
        path = workdir / "drawn" / f"compare_n{config.sampling.n_steps}_seed{config.seed}.png"
        plots.save_comparison(path, rows)
        print(f"{len(rows)} rows of the same {num} noises: {path}")
        return

    folder = workdir / "drawn" / f"{scoring.folder_name(scoring.describe(config, bench))}_seed{config.seed}"
    if trajectory:
        gaussian = bench.gaussian if config.sampling.gls else None
        times, x0 = record_trajectory(config, bench.eps_fn, bench.schedule, gaussian, min(num, TRAJECTORIES))
        strips = np.asarray(datasets.to_uint8(x0, config.data.centered))
        files.write_npz(folder / "trajectory.npz", {"t": times, "predicted_x0": x0})
        plots.save_comparison(folder / "trajectory.png", [(f"image {i}", strips[:, i]) for i in range(strips.shape[1])])
    images = scoring.draw_all(config, bench, num)
    if file_format == "npz":
        files.write_npz(folder / "samples.npz", {"images": images})
    else:
        for i, image in enumerate(images):
            plots.save_image(folder / f"{i:06d}.png", image)
    plots.save_image(folder / "grid.png", plots.image_grid(images[: scoring.GRID_SIZE]))
    print(f"{num} images: {folder}")


# --mode=import and --mode=export


def import_weights(config: ConfigDict, workdir: Path, source: Path) -> None:
    """Makes a checkpoint in a new workdir from a .pth of the paper's code or a folder of a diffusers UNet2DModel."""
    validate(config)
    if any(workdir.glob("checkpoints/*")):
        raise UserError(f"{workdir} holds checkpoints already: import into a new --workdir")
    foreign = load_foreign(source, config)
    checkpoints.claim(config, workdir)
    with checkpoints.open_manager(workdir) as manager:
        checkpoints.save(manager, replicate(losses.state_of(config, foreign.step, foreign.params, foreign.ema)))
    print(f"imported {source} as the checkpoint of step {foreign.step} in {workdir}")


def export_weights(config: ConfigDict, workdir: Path, destination: Path) -> None:
    """Writes the EMA weights of config.eval.checkpoint as a folder that diffusers' UNet2DModel loads."""
    validate(config)
    _, ema = checkpoints.load_ema(config, workdir)
    export_diffusers(destination, config, ema)
    print(f"exported step {checkpoints.require(config, workdir)} of {workdir} to {destination}")
