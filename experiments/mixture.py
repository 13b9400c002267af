"""Compares late starts from mixtures with pure noise and the single Gaussian, and tests whether samples are copies.

python -m experiments.mixture PART [--config=digits] [--workdir=PATH] [--dest=PATH]

PART is table, copying, flow, stratified or likelihood.

--config names a file of configs/ddpm. Its runs are in results/CONFIG, tables and pictures in docs/CONFIG. The mixtures
must be fitted before: --mode=fid_stats --config.sweep.components="('1','labels','10','40')".

table: scores of every solver and n of TABLES, from pure noise at T - 1 and at T - T/n, and from the best late start of
each of COMPONENTS. The best start is searched on noise of another seed. Three seeds are scored.
copying: for each of COMPONENTS, the distances between samples and their nearest training images, and precision, recall
and coverage. The same numbers are given for held-out images, for samples that the network draws in many steps, and for
samples of the mixture without a network.
flow: for each of COMPONENTS, compares starts that are drawn from the mixture with starts on its probability-flow ODE.
stratified: for each mixture, compares stratified components of the images with components that are drawn independently.
likelihood: for each of LIKELIHOOD_COMPONENTS, the likelihood of noised images that the mixture was not fitted to. Needs
no network and no statistics.

Runs are kept below the workdir, and the same command continues after an interruption.
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.typing import ArrayLike
from jaxtyping import Float
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import sampling
from core import parallel, plots, tables
from core.arithmetic import ceil_div
from core.diffusion import Denoiser, NoiseSchedule
from core.rng import key_for
from core.shapes import HostPixels, Images, Timesteps
from evaluation import EvalRun
from experiments.copies import nearest
from experiments.runs import Experiment, main, row, spread, with_runs, write_and_print, write_rows
from metrics import statistics
from metrics.results import Result
from metrics.scores import scores
from metrics.tally import Tally, observe
from models import make_schedule
from sampling.generate import component_sequence, prior
from sampling.late_start import LABELS, ONE, Components, DataMixture
from sampling.time_grid import time_grid


class Table(NamedTuple):
    """The cells of a table, and its numbers of images.

    Attributes:
      solvers: names of samplers.
      steps: numbers of steps.
      samples: images of a scored run.
      searched: images per start in the search of the best start.
    """

    solvers: Sequence[str]
    steps: Sequence[int]
    samples: int
    searched: int


SOLVERS = ("ddpm", "ddim", "pndm", "dpmpp_2m", "unipc_3", "ipndm")
STEPS = (3, 4, 5, 6, 8, 10)
TABLES = {  # by data set
    "digits": Table(SOLVERS, STEPS, samples=10_000, searched=1500),
    "fashion_mnist": Table(SOLVERS, STEPS, samples=10_000, searched=1500),
    "emoji": Table(("ddim", "dpmpp_2m"), (3, 5, 10), samples=2000, searched=400),
}
COMPONENTS = (ONE, LABELS, "10", "40")
SEEDS = (1, 2, 3)
STARTS = (150, 200, 250, 300, 400, 500, 600, 700)  # the starts that are tried first, before neighbours of the best
PURE_NOISE = ("pure noise", "leading")  # starts at T - 1 and at T - T/n
COPY_SOLVER = ("dpmpp_2m", 5)  # the sampler and n of the samples whose nearest training images are searched
COPY_STARTS = (200, 300)
MANY_STEPS = ("ddim", 250)  # the sampler and n of samples that take many steps from pure noise
COPY_SAMPLES = 2000
FLOW_STARTS = (200, 300, 400)
FLOW_STEPS = 4
FLOW_SAMPLES = 2000
FULL_STEPS = 100  # number of steps of the images from pure noise with which images from late starts are compared
HEUN_STEPS = 32  # number of steps of the mixture's probability-flow ODE, equal in log sigma
LIKELIHOOD_COMPONENTS = (ONE, LABELS, "5", "10", "20", "40", "80")
LIKELIHOOD_TIMES = (50, 100, 200, 300, 400)
MARKERS = {LABELS: "s", ONE: "o"}

Cell = Mapping[str, Sequence[Result]]
"""The runs of one solver and n, one per seed, by the kind of start: one of PURE_NOISE or of COMPONENTS."""


def make_table(experiment: Experiment, dest: Path) -> None:
    """Writes mixture.csv, mixture.txt and mixture.png."""
    table = TABLES[experiment.config.data.dataset]
    cells = []
    rows = []
    for n_steps, sampler in tqdm(list(itertools.product(table.steps, table.solvers)), "cells"):
        cells.append(cell := score_cell(experiment, table, sampler=sampler, n_steps=n_steps))
        rows += [row(kind, run) for kind, runs in cell.items() for run in runs]
        write_rows(dest / "mixture.csv", rows)  # after every cell, so that it can be read before all are finished
    draw_cells(dest / "mixture.png", cells)
    write_and_print(dest / "mixture.txt", cells_table(cells))


def score_cell(experiment: Experiment, table: Table, *, sampler: str, n_steps: int) -> Cell:
    """Scores runs from all kinds of start, on the same noise."""
    starts: dict[str, dict[str, Any]] = {"pure noise": {}, "leading": {"baseline": "leading"}}
    for components in COMPONENTS:
        fixed = {"components": components}
        best = experiment.best_start(sampler, n_steps, num=table.searched, coarse=STARTS, **fixed)
        starts[components] = {"t_start": best, **fixed}
    return {
        kind: [experiment.score(sampler, n_steps, seed=seed, num=table.samples, **settings) for seed in SEEDS]
        for kind, settings in starts.items()
    }


def cells_table(cells: Sequence[Cell]) -> str:
    """Makes a table of scores and chosen starts, and of the gain of the best mixture over noise and one Gaussian."""
    late = [f"{kind} {part}" for kind in map(kind_name, COMPONENTS) for part in ("from", "score")]
    header = ("sampler", "n", "NFE", "999", "T - T/n", *late, "over noise", "over Gaussian")
    lines = []
    for cell in cells:
        first = cell["pure noise"][0]
        line = [first["sampler"], str(first["n_steps"]), str(first["nfe"])]
        line += [spread(cell[kind], "score") for kind in PURE_NOISE]
        for components in COMPONENTS:
            line += [str(cell[components][0]["t_start"]), spread(cell[components], "score")]
        scores = {kind: mean(run["score"] for run in runs) for kind, runs in cell.items()}
        best = min(score for kind, score in scores.items() if kind not in (*PURE_NOISE, ONE))
        noise = min(scores[kind] for kind in PURE_NOISE)
        lines.append([*line, f"{noise / best:.1f}x", f"{scores[ONE] / best:.1f}x"])
    return tables.aligned(header, lines)


def kind_name(components: str) -> str:
    """Returns the name of a value of sampling.components in tables."""
    return {ONE: "Gaussian", LABELS: "labels"}.get(components, f"{components} clusters")


def draw_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Draws score against network evaluations, with one panel per solver and one line per kind of start."""
    solvers = list(dict.fromkeys(cell["pure noise"][0]["sampler"] for cell in cells))
    size = (3.2 * len(solvers), 3.4)
    shared = {"sharex": True, "sharey": True, "layout": "constrained"}
    with plots.panels(path, size, rows=1, columns=len(solvers), **shared) as [axes]:
        for axis, solver in zip(axes, solvers, strict=True):
            own = [cell for cell in cells if cell["pure noise"][0]["sampler"] == solver]
            for kind in own[0]:
                evaluations = [cell[kind][0]["nfe"] for cell in own]
                scores = [mean(run["score"] for run in cell[kind]) for cell in own]
                label = kind if kind in PURE_NOISE else kind_name(kind)
                style = {"linestyle": ":" if kind in PURE_NOISE else "-", "marker": MARKERS.get(kind, "^")}
                axis.plot(evaluations, scores, markersize=4, label=label, **style)
            axis.set(yscale="log", title=solver, xlabel="network evaluations")
            axis.grid(which="both", alpha=0.3)
        first = cells[0]["pure noise"][0]
        axes[0].set_ylabel(f"{first['score_name']}, {first['num_samples']:,} samples")
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)


# Copies of training images


def make_copying(experiment: Experiment, dest: Path) -> None:
    """Writes copying.txt: how near samples are to training images, and how diverse, for each mixture."""
    training = datasets.load(experiment.config, "train").images
    settings = {"seed": SEEDS[0], "num": COPY_SAMPLES}
    _, many_steps = experiment.draw(*MANY_STEPS, **settings)
    sets: dict[str, HostPixels] = {"real": held_out(experiment), "many steps": many_steps}
    for components, t_start in itertools.product(COMPONENTS, COPY_STARTS):
        name = f"{kind_name(components)}, from {t_start}"
        _, sets[name] = experiment.draw(*COPY_SOLVER, t_start=t_start, components=components, **settings)
    for components in COMPONENTS:
        sets[f"{kind_name(components)}, no network"] = mixture_images(experiment, components)
    lines = []
    for name, images in tqdm(sets.items(), "sets"):
        itself = name == "real" and len(images) == len(training)
        neighbours = nearest_other(images, training) if itself else nearest(images, training)[1]
        quantiles = [f"{np.quantile(neighbours, level):.1f}" for level in (0.01, 0.05, 0.5)]
        found = score_of(experiment, images)
        facts = [f"{found[measure]:.3f}" for measure in ("precision", "recall", "coverage", "label_entropy")]
        lines.append([name, str(len(images)), *quantiles, f"{found['score']:.2f}", *facts])
    header = ("images", "number", "1%", "5%", "median", "score", "precision", "recall", "coverage", "label entropy")
    write_and_print(dest / "copying.txt", tables.aligned(header, lines))


def held_out(experiment: Experiment) -> HostPixels:
    """Returns at most COPY_SAMPLES test images. For digits, which have no test split, returns the training images."""
    if experiment.config.data.dataset == "digits":
        return datasets.load(experiment.config, "train").images
    return datasets.spread(datasets.load(experiment.config, "test").images, COPY_SAMPLES)


def nearest_other(images: HostPixels, training: HostPixels) -> np.ndarray:
    """Returns the distance from each training image to the nearest of the other training images."""
    rest = [np.delete(training, i, axis=0) for i in range(len(images))]
    return np.concatenate([nearest(images[i : i + 1], others)[1] for i, others in enumerate(rest)])


def mixture_images(experiment: Experiment, components: str) -> HostPixels:
    """Draws COPY_SAMPLES images from the mixture itself, without a network."""
    mixture = mixture_of(experiment, components)
    noise, _ = prior(SEEDS[0], first=0, batch_size=COPY_SAMPLES, image_shape=mixture.image_shape)
    component = component_sequence(np.asarray(mixture.weights), SEEDS[0], first=0, count=COPY_SAMPLES)
    return to_pixels(experiment, jax.jit(DataMixture.sample)(mixture, noise, component, 1.0))


def mixture_of(experiment: Experiment, components: str) -> DataMixture:
    """Returns the mixture for this value of sampling.components."""
    config = experiment.variant("ddim", 3, seed=0, num=2, t_start=500, components=components)
    return EvalRun(config, experiment.context).mixture


def to_pixels(experiment: Experiment, x0: Images) -> HostPixels:
    """Converts images in the network's range to uint8 in host memory."""
    return parallel.all_rows(datasets.to_uint8(x0, experiment.config.data.centered))


def score_of(experiment: Experiment, images: HostPixels) -> Result:
    """Scores images that are in host memory."""
    context = experiment.context
    tally = Tally(context.features.dim)
    size = experiment.config.eval.feature_batch_size
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padded = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
        observe(tally, context.features, context.labeller, parallel.shard_batch(padded), count=len(batch))
    return scores(tally, context.reference)


# Starts on the probability-flow ODE of the mixture


def make_flow(experiment: Experiment, dest: Path) -> None:
    """Writes flow.txt: results for starts drawn from mixtures, and for starts on their probability-flow ODE."""
    last = experiment.context.denoiser.schedule.num_timesteps - 1
    full, _ = flow_images(experiment, mixture_of(experiment, ONE), start=unchanged, grid=time_grid(FULL_STEPS, last))
    lines = []
    for components, t_start in tqdm(list(itertools.product(COMPONENTS, FLOW_STARTS)), "flow"):
        mixture = mixture_of(experiment, components)
        for name, start in {"drawn": DataMixture.sample, "flow": flow_start}.items():
            images, seconds = flow_images(experiment, mixture, start=start, grid=time_grid(FLOW_STEPS, t_start))
            found = score_of(experiment, images)
            distance = np.sqrt(np.mean((images.astype(np.float64) - full) ** 2))
            facts = [f"{found['score']:.2f} ± {found['score_error']:.1g}", f"{found['label_distance']:.3f}"]
            lines.append([kind_name(components), str(t_start), name, *facts, f"{distance:.1f}", f"{seconds:.1f}"])
    header = ("mixture", "start", "kind", "score", "label distance", "to the full image", "seconds")
    write_and_print(dest / "flow.txt", tables.aligned(header, lines))


Start = Callable[[DataMixture, Images, Components, ArrayLike], Images]
"""Maps (mixture, noise, component, alpha_bar) to x_t."""


def unchanged(_: DataMixture, noise: Images, __: Components, ___: ArrayLike) -> Images:
    """Returns the noise, for a start from pure noise."""
    return noise


def flow_start(mixture: DataMixture, noise: Images, _: Components, alpha_bar: ArrayLike) -> Images:
    """Solves the mixture's probability-flow ODE from the noise to alpha_bar.

    With y = x / signal and v = sigma / signal, the ODE is dy = eps dv. Heun's method takes HEUN_STEPS steps, equal in
    log v, from v = 160, where x_0 contributes 0.6% to x.
    """
    end = jnp.sqrt(1 / jnp.asarray(alpha_bar) - 1)
    grid = jnp.exp(jnp.linspace(jnp.log(160.0), jnp.log(end), HEUN_STEPS + 1))

    def slope(y, v):
        return mixture.eps(y / jnp.sqrt(1 + v**2), 1 / (1 + v**2))

    def step(y, ends):
        v, next_v = ends
        first = slope(y, v)
        second = slope(y + (next_v - v) * first, next_v)
        return y + (next_v - v) * (first + second) / 2, None

    y, _ = jax.lax.scan(step, noise * jnp.sqrt(1 + grid[0] ** 2), (grid[:-1], grid[1:]))
    return y / jnp.sqrt(1 + grid[-1] ** 2)


def flow_images(
    experiment: Experiment,
    mixture: DataMixture,
    *,
    start: Start,
    grid: Timesteps,
    seed: int = SEEDS[0],
    sequence: Callable[..., np.ndarray] = component_sequence,
) -> tuple[HostPixels, float]:
    """Draws FLOW_SAMPLES images with DPM-Solver++(2M), without a history. Returns (images, seconds).

    The seconds do not include compilation.
    """
    size = experiment.config.eval.batch_size
    denoiser = experiment.context.denoiser
    found = []
    for first in range(0, FLOW_SAMPLES, size):
        noise, _ = prior(seed, first=first, batch_size=size, image_shape=mixture.image_shape)
        component = sequence(np.asarray(mixture.weights), seed, first=first, count=size)
        x0 = _solve(denoiser, mixture, noise, component, grid=grid, start=start)
        if first == 0:
            x0.block_until_ready()
            began = time.perf_counter()
        found.append(to_pixels(experiment, x0))
    return np.concatenate(found)[:FLOW_SAMPLES], time.perf_counter() - began


@functools.partial(jax.jit, static_argnames="start")
def _solve(
    denoiser: Denoiser, mixture: DataMixture, noise: Images, component: Components, *, grid: Timesteps, start: Start
) -> Images:
    x = start(mixture, noise, component, denoiser.schedule.alpha_bar(grid[0]))
    return sampling.sample("dpmpp_2m", denoiser, x, grid)


# Stratified and independent components


def make_stratified(experiment: Experiment, dest: Path) -> None:
    """Writes stratified.txt: the scores and label shares of images with stratified and with independent components."""
    t_start = FLOW_STARTS[0]
    lines = []
    for components in tqdm([entry for entry in COMPONENTS if entry != ONE], "stratified"):
        mixture = mixture_of(experiment, components)
        for name, sequence in {"stratified": component_sequence, "independent": independent_sequence}.items():
            options = {"start": DataMixture.sample, "grid": time_grid(FLOW_STEPS, t_start), "sequence": sequence}
            sets = [flow_images(experiment, mixture, seed=seed, **options)[0] for seed in SEEDS]
            found = [score_of(experiment, images) for images in sets]
            lines.append([kind_name(components), name, spread(found, "score"), spread(found, "label_distance")])
    write_and_print(
        dest / "stratified.txt", tables.aligned(("mixture", "components", "score", "label distance"), lines)
    )


def independent_sequence(weights: np.ndarray, seed: int, first: int, count: int) -> np.ndarray:
    """Draws the components of the images with indices first .. first + count - 1 independently of each other."""
    return np.random.default_rng((seed, first)).choice(len(weights), count, p=weights / weights.sum()).astype(np.int32)


# Likelihood of held-out images


def make_likelihood(config: ConfigDict, workdir: Path, dest: Path) -> None:
    """Writes likelihood.txt: the mean log density of noised held-out images, minus its value under one Gaussian.

    The mixtures are fitted to the training split. Digits have no test split, so `datasets.load_labelled` divides them.
    """
    fitted_to, held_out_split = datasets.load_labelled(config)
    options = {"centered": config.data.centered}
    gaussian = statistics.fit_gaussian(fitted_to.images, rank=config.sampling.rank, **options)
    x0 = datasets.to_network_range(jnp.asarray(held_out_split.images), config.data.centered)
    noise = jax.random.normal(key_for(SEEDS[0], "likelihood"), x0.shape)
    schedule = make_schedule(config)
    densities = {}
    for components in tqdm(LIKELIHOOD_COMPONENTS, "likelihood"):
        statistics.require_components(components, fitted_to)
        mixture, names = statistics.fit_mixture(gaussian, fitted_to, components, **options)
        found = [log_density(schedule, mixture, x0, noise=noise, t=t) for t in LIKELIHOOD_TIMES]
        densities[f"{kind_name(components)} (K = {len(names)})"] = np.stack(found)
    one, *others = densities.items()
    lines = []
    for name, values in others:
        gains = values - one[1]
        errors = gains.std(axis=1, ddof=1) / np.sqrt(gains.shape[1])
        lines.append(
            [name, *(f"{gain:.2f} ± {error:.1g}" for gain, error in zip(gains.mean(axis=1), errors, strict=True))]
        )
    header = ("nats over one Gaussian", *(f"t = {t}" for t in LIKELIHOOD_TIMES))
    write_and_print(dest / "likelihood.txt", tables.aligned(header, lines))


def log_density(
    schedule: NoiseSchedule, mixture: DataMixture, x0: Images, *, noise: Images, t: int
) -> Float[np.ndarray, "images"]:
    """Returns the log density of each noised image x_t under the mixture, in nats."""
    log_joint = jax.jit(DataMixture.log_joint)
    x_t = schedule.diffuse(x0, t, noise)
    rows = [log_joint(mixture, part, schedule.alpha_bar(t)) for part in jnp.array_split(x_t, ceil_div(len(x_t), 500))]
    return scipy.special.logsumexp(np.concatenate(rows, dtype=np.float64), axis=1)


PARTS = {
    name: with_runs(part, COMPONENTS)
    for name, part in {
        "table": make_table,
        "copying": make_copying,
        "flow": make_flow,
        "stratified": make_stratified,
    }.items()
} | {"likelihood": make_likelihood}

if __name__ == "__main__":
    main("experiments.mixture", __doc__, PARTS, ("digits", "fashion_mnist", "fashion_mnist_eps", "emoji"))
