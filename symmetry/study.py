"""The analysis of one trained network (--mode=analyze): measurements, figures, scored runs, and a report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import evaluation
from configs.runs import expand_starts, sweep_configs, without_scores
from core import files, plots, tables
from core.rng import key_for
from core.shapes import Images
from evaluation import EvalContext, EvalRun
from metrics.labels import load_labeller
from metrics.results import Result, RunSettings, all_finished
from sampling.time_grid import AUTO_START
from symmetry import figures, measurements, report
from symmetry.critical import NAMES, RULES, leading_times
from symmetry.measurements import Arrays, Subject


class Figure(NamedTuple):
    """A figure of the report."""

    name: str  # name of the PNG, without the extension
    title: str
    explanation: str
    draw: Callable[[Path, Any, figures.Marks], None]  # draws the result of a measurement, or scored runs


EXPERIMENTS: dict[Callable[[Subject], Arrays], tuple[Figure, ...]] = {
    measurements.cascade: (
        Figure(
            "cascade",
            "Spectrum and critical times",
            "Each dot is one eigenvector of the data's covariance. It shows the variance, and the time at which this "
            "direction becomes unstable, for each of three rules. Directions of large variance become unstable first. "
            "No network is used.",
            figures.draw_cascade,
        ),
    ),
    measurements.growth: (
        Figure(
            "growth",
            "Measured instability",
            "The leading eigenvalues of the drift's Jacobian. Where one is positive, small differences between images "
            "grow. Left: at the network's central fixed point. In gaps of the curves, no fixed point was found. The "
            "network was not trained on such inputs, so these numbers mean little. Right: at noised images, on which "
            "the network was trained.",
            figures.draw_growth,
        ),
    ),
    measurements.agreement: (
        Figure(
            "agreement",
            "Is the marginal still Gaussian?",
            "The fraction of the network's noise prediction that the Gaussian with the data's mean and covariance "
            "does not explain. At times where it is small, a late start from that Gaussian costs little quality. Stars "
            "are the starts that t_start = auto chose.",
            figures.draw_agreement,
        ),
    ),
    measurements.splits: (
        Figure(
            "splits",
            "Which splits of the data are visible?",
            "Left: how much a noised image reveals about the component to which its image belongs (1: everything). A "
            "dotted line is the critical time of the components' means. Right: the share of the network's noise "
            "prediction that the mixture does not explain. Stars are the best starts of the scored runs. At times at "
            "which the component is not visible, a sampler can still choose it. A start from the mixture at a lower "
            "time chooses it instead of the sampler.",
            figures.draw_splits,
        ),
    ),
    measurements.generation: (
        Figure(
            "potential",
            "The potential between two images",
            "The integral of minus the drift along a path between two generated trajectories at the same time. Mean "
            "and variance are constant on the path. The scales differ between panels. Early in generation the "
            "potential is nearly flat. Later each image has its own valley.",
            figures.draw_potential,
        ),
        Figure(
            "strips",
            "Interpolations",
            "The network's predictions of x_0 along the path of the first pair. Early in generation all predictions "
            "are the same blur. Later the two sides are different images.",
            figures.draw_strips,
        ),
        Figure(
            "pixels",
            "Single pixels",
            "Three pixels of all trajectories, minus their mean and in units of their standard deviation at that time, "
            "coloured by the sign of their final value. The colours separate when the sign of a pixel is decided.",
            figures.draw_pixels,
        ),
    ),
    measurements.same_noise: (
        Figure(
            "same_noise",
            "Same noise, same picture",
            "The distance between images from late starts and images of DDIM with one step for every time, both from "
            "the same noise. The grey line is the distance between images from different noise.",
            figures.draw_same_noise,
        ),
    ),
    measurements.correlation: (
        Figure(
            "correlation",
            "Correlation under noising",
            "The correlation of a noised image with the clean image, and with the final noise. Thin lines are single "
            "images.",
            figures.draw_correlation,
        ),
    ),
    measurements.u_turn: (
        Figure(
            "u_turn",
            "U-turn: is the class decided?",
            "Images are noised to t and denoised again, and a classifier checks whether the class is still the same. "
            "Where the probability is at chance level, x_t has no information about the class, so generation decides "
            "the class at lower t.",
            figures.draw_u_turn,
        ),
    ),
}


SCORES = (
    Figure(
        "full_length",
        "Scores of full-length samplers",
        "Scores with one step for every t, from pure noise (dashed) and from late starts. They show the error of the "
        "Gaussian without the error of few steps. Starts before the critical time do not change the score. Later "
        "starts make it worse.",
        figures.draw_scores,
    ),
    Figure(
        "scores",
        "Scores of few steps",
        "Scores with n steps. From pure noise (dashed), most steps are before the critical time. The best start is "
        "near the critical time, and later if there are fewer steps.",
        figures.draw_scores,
    ),
)


INTRODUCTION = (
    "Time runs from noise at the left to data at the right. Vertical lines mark the time at which the direction of "
    "largest variance becomes unstable, for three rules. The table compares these rules with the network, for each "
    "direction. For the network it has the times at which the eigenvalues of the drift's Jacobian become positive, at "
    "the fixed point and at noised images."
)


def analyze(config: ConfigDict, workdir: Path, eval_folder: str | Path) -> tuple[str, Path]:
    """Analyzes the network of the workdir, and writes figures, numbers and a report to workdir/analysis.

    Stored measurements and runs with the same settings are reused, also the scored runs of an evaluation or a sweep in
    workdir/eval_folder. Returns the table of critical times and the path of the report.
    """
    settings = config.analysis
    folder = workdir / "analysis"
    run_config = _run_config(config)
    few_steps = _few_step_runs(run_config)
    full_length = _full_length_runs(run_config)
    automatic = _automatic_runs(config, run_config)
    context = evaluation.load_context(run_config, workdir, [run_config, *few_steps, *full_length, *automatic])
    network = {"dataset": config.data.dataset, "weights_sha256": context.weights_sha256}
    labeller = load_labeller(config)
    measured = {name: settings[name] for name in ("num_times", "num_eigenvalues", "n_steps")}
    subject = Subject(
        denoiser=context.denoiser,
        gaussian=context.gaussian,
        mixtures={components: mixture for (components, _), (mixture, _) in context.mixtures.items()},
        x0=_training_images(config),
        centered=config.data.centered,
        predict=labeller and (lambda images: np.asarray(labeller.scores(images)).argmax(axis=1)),
        rng=key_for(config.seed, "analysis"),
        **measured,
    )
    scored = {
        "full_length": _scored(full_length, context, folder / "scores", name="full length"),
        "scores": _stored_scores(config, network, workdir / eval_folder)
        or _scored(few_steps, context, folder / "scores", name="few steps"),
        "auto": [run for run in all_finished(network, workdir / eval_folder) if run.get("chooses_start")]
        or _automatic_starts(automatic, context),
    }
    key = network | measured | {"seed": config.seed, "num_images": settings.num_images}
    key |= {"gaussian_sha256": context.gaussian_sha256, "classifier": labeller.name if labeller else None}
    if context.mixtures:
        key["mixtures_sha256"] = {components: sha256 for (components, _), (_, sha256) in context.mixtures.items()}
    title = f"Symmetry breaking: {config.data.dataset}, step {context.checkpoint_step}"
    return run(subject, scored, key=key, folder=folder, title=title), folder / "report.html"


def _training_images(config: ConfigDict) -> Images:
    """Returns analysis.num_images training images, evenly spaced over the split, in the network's range."""
    images = datasets.spread(datasets.load(config, "train").images, config.analysis.num_images)
    return datasets.to_network_range(jnp.asarray(images), config.data.centered)


def run(
    subject: Subject, scored: Mapping[str, Sequence[Result]], *, key: Mapping[str, Any], folder: Path, title: str
) -> str:
    """Runs every measurement that is not stored with the same key, draws all figures, and writes report.html.

    Returns the table of critical times.

    scored: scored runs of this network, by the name of the figure of SCORES that draws them. A figure without runs is
      left out. The entry "auto" has runs with an automatic start, which are marked in figures.
    """
    stored_key = json.dumps(key, sort_keys=True)
    critical = leading_times(subject.gaussian.eigenvalues, subject.denoiser.schedule)
    marks = figures.Marks(critical, auto=scored["auto"], scored=scored["scores"])
    shown = []  # the arguments of _draw, which is called after all numbers are on disk
    table = ""
    for experiment, drawn in tqdm(EXPERIMENTS.items(), desc="analyze", unit="experiment"):
        numbers = folder / f"{experiment.__name__}.npz"
        arrays = _stored(numbers, stored_key)
        if arrays is None:
            arrays = experiment(subject)
            files.write_npz(numbers, arrays | {"question": np.array(stored_key)})
        if experiment is measurements.growth:
            table = critical_times_table(arrays)
            files.write_json(folder / "critical_times.json", {name: _listed(arrays[name]) for name in COMPARED})
        if arrays.keys() - {"question"}:
            shown += [(figure, arrays, numbers) for figure in drawn]
    for figure in SCORES:
        if runs := scored[figure.name]:
            numbers = folder / f"{figure.name}.json"
            files.write_json(numbers, {"results": list(runs)})
            shown.append((figure, runs, numbers))
    entries = [_draw(*arguments, marks) for arguments in shown]
    report.write(folder / "report.html", title, INTRODUCTION, table=table, entries=entries)
    return table


def _stored(path: Path, key: str) -> Arrays | None:
    """Returns the stored arrays of a measurement if they have the same key, else None."""
    arrays = files.read_npz(path, required={"question"}) if path.exists() else {"question": ""}
    return arrays if str(arrays["question"]) == key else None


def _draw(figure: Figure, content: Arrays | Sequence[Result], numbers: Path, marks: figures.Marks) -> report.Entry:
    """Draws a figure into the folder of `numbers`, the file with its data. Returns its section of the report."""
    picture = numbers.with_name(f"{figure.name}.png")
    drawn = plots.attempt(figure.draw, picture, content, marks)
    return report.Entry(figure.title, figure.explanation, picture if drawn else None, numbers)


COMPARED = {  # the columns of the table of critical times: an array of `measurements.growth`, and its heading
    "eigenvalues": "variance",
    **{f"t_{rule}": NAMES[rule] for rule in RULES},
    "t_fixed_point": "fixed point",
    "t_images": "at images",
}


def critical_times_table(arrays: Arrays) -> str:
    """Makes a table with the variance, three predicted and two measured critical times of each leading direction.

    arrays: the result of `measurements.growth`.
    """
    rows = []
    for i, (variance, *times) in enumerate(zip(*[arrays[name] for name in COMPARED], strict=True)):
        rows.append([str(i + 1), f"{variance:.2f}", *("never" if np.isnan(t) else f"{t:.0f}" for t in times)])
    return tables.aligned(("direction", *COMPARED.values()), rows)


def _listed(values: Float[np.ndarray, "values"]) -> list[float | None]:
    """Returns the values as a list, with None for NaN, because JSON has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


SCORED = ("ddpm", "ddim")  # the samplers for which an analysis measures how the score depends on the start
PAPER_SAMPLING = {"baseline": "", "spacing": "linear", "clip_x0": False}


def _run_config(config: ConfigDict) -> ConfigDict:
    """Returns the config of the runs of an analysis. They are scored if eval.enable_fid and score_samples > 0."""
    run_config = without_scores(config, max(config.analysis.score_samples, 1))
    run_config.eval.enable_fid = config.eval.enable_fid and config.analysis.score_samples > 0
    run_config.sampling.update(gls=True, n_steps=1, t_start=run_config.model.num_scales - 1, **PAPER_SAMPLING)
    run_config.sweep.samplers = SCORED
    return run_config


def _few_step_runs(run_config: ConfigDict) -> list[ConfigDict]:
    """Lists runs with the largest n_steps of config.sweep, from pure noise and from each start except "auto"."""
    starts = [t_start for t_start in expand_starts(run_config.sweep.t_starts) if t_start != AUTO_START]
    return sweep_configs(run_config, (max(run_config.sweep.n_steps),), starts)


def _full_length_runs(run_config: ConfigDict) -> list[ConfigDict]:
    """Lists runs with one step for every t, from pure noise and from each of analysis.score_starts."""
    last = run_config.model.num_scales - 1
    starts = [(last, False), *[(t_start, True) for t_start in run_config.analysis.score_starts]]
    runs = []
    for sampler in SCORED:
        for t_start, gls in starts:
            run = run_config.copy_and_resolve_references()
            run.sampling.update(sampler=sampler, n_steps=t_start + 1, t_start=t_start, gls=gls)
            runs.append(run)
    return runs


def _automatic_runs(config: ConfigDict, run_config: ConfigDict) -> list[ConfigDict]:
    """Lists runs with an automatic start, for an evaluation of config.eval.num_samples images.

    DDPM is left out without scores, because its automatic start needs the features of the data.
    """
    runs = []
    for sampler in SCORED if run_config.eval.enable_fid else ("ddim",):
        run = run_config.copy_and_resolve_references()
        run.eval.num_samples = config.eval.num_samples
        run.sampling.update(sampler=sampler, n_steps=max(run_config.sweep.n_steps), t_start=AUTO_START)
        runs.append(run)
    return runs


def _automatic_starts(runs: Sequence[ConfigDict], context: EvalContext) -> list[Result]:
    """Chooses the automatic starts of the runs. Returns them in the form of result.json."""
    found = []
    for run in runs:
        eval_run = EvalRun(run, context)
        _, chosen = eval_run.plan()
        found.append(eval_run.settings | {"auto_start": chosen.facts()})
    return found


def _scored(runs: Sequence[ConfigDict], context: EvalContext, folder: Path, *, name: str) -> list[Result]:
    """Returns the results of runs, which are drawn and scored unless they are stored. Empty if nothing is scored."""
    if context.features is None:
        return []
    found = []
    with tqdm(total=sum(run.sampling.n_steps for run in runs), desc=name, unit="step") as progress:
        for run in runs:
            found.append(EvalRun(run, context).result(folder))
            progress.update(run.sampling.n_steps)
    return found


def _stored_scores(config: ConfigDict, network: RunSettings, folder: Path) -> list[Result]:
    """Returns the stored results of DDPM and DDIM from an evaluation or a sweep with the settings of the paper."""
    settings = network | PAPER_SAMPLING | {"seed": config.seed, "num_samples": config.eval.num_samples}
    return [result for result in all_finished(settings, folder) if result["sampler"] in SCORED]
