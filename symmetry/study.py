"""The study of one trained network: experiments, their numbers and pictures, and a report of all."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import evaluation
from configs.runs import expand_starts, sweep_configs, unscored
from core import files, tables
from core.rng import key_for
from metrics.labels import load_labeller
from metrics.results import Result, all_finished
from sampling.time_grid import AUTO_START
from symmetry import figures, measurements, report
from symmetry.critical import NAMES, RULES, leading_times
from symmetry.measurements import Arrays, Subject


class Figure(NamedTuple):
    name: str  # of the PNG
    title: str
    explanation: str
    draw: Callable[[Path, Arrays, figures.Marks], None]


EXPERIMENTS: dict[Callable[[Subject], Arrays], tuple[Figure, ...]] = {
    measurements.cascade: (
        Figure(
            "cascade",
            "Spectrum and critical times",
            "Each dot is one direction of the data's covariance: its variance, and when it becomes unstable by each of "
            "three rules. Broad directions decide first; no network is involved.",
            figures.draw_cascade,
        ),
    ),
    measurements.growth: (
        Figure(
            "growth",
            "Measured instability",
            "The leading eigenvalues of the drift's Jacobian: where one rises above zero, images are pushed apart. "
            "Left at the network's central fixed point, where it was never trained, so that its numbers there mean "
            "little (gaps: no fixed point found); right at noised images, where it was.",
            figures.draw_growth,
        ),
    ),
    measurements.agreement: (
        Figure(
            "agreement",
            "Is the marginal still Gaussian?",
            "The share of the network's noise prediction that the Gaussian of the data's mean and covariance does "
            "not explain. While it is small, a late start from that Gaussian loses little. Stars, where there are any, "
            "are the starts that t_start = auto chose.",
            figures.draw_agreement,
        ),
    ),
    measurements.generation: (
        Figure(
            "potential",
            "The potential between two images",
            "Minus the drift, integrated along a path that keeps mean and variance, between two generated trajectories "
            "at the same time (mind the scales). Early on it is nearly flat; later each image has a valley of its own.",
            figures.draw_potential,
        ),
        Figure(
            "strips",
            "Interpolations",
            "What the network takes the points of the first pair's path to be. Early on it is the same blur for all; "
            "later each side has an image of its own.",
            figures.draw_strips,
        ),
        Figure(
            "pixels",
            "Pixels on their way",
            "Three pixels of all trajectories, as distances from their mean in units of their deviation at that time, "
            "coloured by where they end. Colours mix until the pixel is decided.",
            figures.draw_pixels,
        ),
    ),
    measurements.same_noise: (
        Figure(
            "same_noise",
            "Same noise, same picture",
            "How far the images of late starts lie from those that the full DDIM, asked at every time, makes of the "
            "same noise. The grey line is the distance between images of different noises.",
            figures.draw_same_noise,
        ),
    ),
    measurements.correlation: (
        Figure(
            "correlation",
            "How long noising remembers",
            "The correlation of a noised image with the image that it was, and with the noise that it ends in. Thin "
            "lines are single images.",
            figures.draw_correlation,
        ),
    ),
    measurements.u_turn: (
        Figure(
            "u_turn",
            "U-turn: is the class decided?",
            "Images are noised to t and denoised again, and a classifier says whether the class is still the same. "
            "Where it falls to chance, nothing of the class was left: it is decided below that time.",
            figures.draw_u_turn,
        ),
    ),
}


SCORES = (
    Figure(
        "full_length",
        "Scores of full-length samplers",
        "One step for every t, from pure noise (dashed) and from late starts: what the Gaussian costs where steps are "
        "plenty. Flat down to the critical time, since nothing was decided before; then it rises.",
        figures.draw_scores,
    ),
    Figure(
        "scores",
        "Scores of few steps",
        "The same with n steps: from pure noise (dashed) most of them are spent before anything is decided. The best "
        "start lies near the critical time, and the later the fewer steps there are.",
        figures.draw_scores,
    ),
)


INTRODUCTION = (
    "Time runs from noise at the left to data at the right. Vertical lines mark when the data's broadest direction "
    "becomes unstable, by three rules. The table compares these rules with what the network does, direction by "
    "direction: when the Jacobian of its drift turns positive at its fixed point, and at noised images."
)


def analyze(config: ConfigDict, workdir: Path, eval_folder: str) -> tuple[str, Path]:
    """Where symmetry breaks in the network of the workdir: pictures, numbers and a report in workdir/analysis.

    Experiments and runs whose numbers are there already are not made again. Returns the table of critical times and
    the report's path.
    """
    own, settings, folder = _analysis_config(config), config.analysis, workdir / "analysis"
    starts = [t_start for t_start in expand_starts(own.sweep.t_starts) if t_start != AUTO_START]
    few = sweep_configs(own, (max(own.sweep.n_steps),), starts)
    full_length = _full_length_runs(own)
    bench = evaluation.load_bench(own, workdir, [own, *few, *full_length])
    facts = {"dataset": config.data.dataset, "weights_sha256": bench.weights_sha256}
    images = datasets.spread(datasets.load(config, "train").images, settings.num_images)
    x0 = datasets.to_network_range(jnp.asarray(images), config.data.centered)
    results = {
        "full_length": _scored(full_length, bench, folder / "scores", "full length"),
        "scores": _scores_there(config, facts, workdir / eval_folder)
        or _scored(few, bench, folder / "scores", "few steps"),
        "auto": [run for run in all_finished(facts, workdir / eval_folder) if run.get("chooses_start")]
        or _chosen_starts(config, own, bench),
    }
    labeller = load_labeller(config)
    measured = {name: settings[name] for name in ("num_times", "num_eigenvalues", "n_steps")}
    subject = Subject(
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
    return run(subject, results, question, folder, title), folder / "report.html"


def run(subject: Subject, results: Mapping[str, Sequence[Result]], question: dict, folder: Path, title: str) -> str:
    """Makes every experiment, unless its numbers for the same question are there; draws them and writes report.html.

    results: scored runs of this network for the figures of SCORES, by their names, and, as "auto", runs whose late
    start was chosen, to be marked; where there are none, nothing is drawn. Returns the table of critical times.
    """
    stored = json.dumps(question, sort_keys=True)
    marks = figures.Marks(leading_times(subject.gaussian.eigenvalues, subject.schedule), results["auto"])
    entries, table = [], ""
    for experiment, drawn in tqdm(EXPERIMENTS.items(), desc="analyze", unit="experiment"):
        numbers = folder / f"{experiment.__name__}.npz"
        if (arrays := _kept(numbers, stored)) is None:
            arrays = experiment(subject)
            files.write_npz(numbers, arrays | {"question": np.array(stored)})
        if experiment is measurements.growth:
            table = comparison(arrays)
            files.write_json(folder / "critical_times.json", {name: _listed(arrays[name]) for name in COMPARED})
        if arrays.keys() - {"question"}:
            entries += [_draw(figure, arrays, numbers, folder, marks) for figure in drawn]
    for figure in (figure for figure in SCORES if results[figure.name]):
        numbers = folder / f"{figure.name}.json"
        files.write_json(numbers, {"results": list(results[figure.name])})
        entries.append(_draw(figure, results[figure.name], numbers, folder, marks))
    report.write(folder / "report.html", title, INTRODUCTION, table, entries)
    return table


def _kept(path: Path, question: str) -> Arrays | None:
    """The arrays of an earlier analysis that asked the same."""
    arrays = files.read_npz(path, required={"question"}) if path.exists() else {"question": ""}
    return arrays if str(arrays["question"]) == question else None


def _draw(figure: Figure, content, numbers: Path, folder: Path, marks: figures.Marks) -> report.Entry:
    picture = folder / f"{figure.name}.png"
    figure.draw(picture, content, marks)
    return report.Entry(figure.title, figure.explanation, picture, numbers)


COMPARED = {
    "eigenvalues": "variance",
    **{f"t_{rule}": NAMES[rule] for rule in RULES},
    "t_fixed_point": "fixed point",
    "t_images": "at images",
}


def comparison(arrays: Arrays) -> str:
    """A row for every leading direction: its variance, three predicted critical times and two measured ones."""
    rows = [
        [str(i + 1), f"{variance:.2f}", *("never" if np.isnan(t) else f"{t:.0f}" for t in times)]
        for i, (variance, *times) in enumerate(zip(*[arrays[name] for name in COMPARED], strict=True))
    ]
    return tables.aligned(("direction", *COMPARED.values()), rows)


def _listed(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


SCORED = ("ddpm", "ddim")  # the samplers whose scores an analysis shows against the start
AS_IN_THE_PAPER = {"baseline": "", "spacing": "linear", "clip_x0": False}


def _analysis_config(config: ConfigDict) -> ConfigDict:
    """What the runs of an analysis share. They are scored unless eval.enable_fid or analysis.score_samples says no."""
    own = unscored(config, max(config.analysis.score_samples, 1))
    own.eval.enable_fid = config.eval.enable_fid and config.analysis.score_samples > 0
    own.sampling.update(gls=True, n_steps=1, t_start=own.model.num_scales - 1, **AS_IN_THE_PAPER)
    own.sweep.samplers = SCORED
    return own


def _chosen_starts(config: ConfigDict, own: ConfigDict, bench: evaluation.Bench) -> list[Result]:
    """What a run with t_start = auto says of its start, for an evaluation of the config's own size."""
    found = []
    for sampler in SCORED:
        run = own.copy_and_resolve_references()
        run.eval.num_samples = config.eval.num_samples
        run.sampling.update(sampler=sampler, n_steps=max(own.sweep.n_steps), t_start=AUTO_START)
        _, choice = evaluation.plan(run, bench)
        found.append(evaluation.describe(run, bench) | {"auto_start": choice.facts()})
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


def _scored(runs: Sequence[ConfigDict], bench: evaluation.Bench, folder: Path, name: str) -> list[Result]:
    """The results of runs, each drawn and scored unless it is finished; none without something to score by."""
    if bench.features is None:
        return []
    results = []
    with tqdm(total=sum(run.sampling.n_steps for run in runs), desc=name, unit="step") as progress:
        for run in runs:
            results.append(evaluation.run_once(run, bench, folder))
            progress.update(run.sampling.n_steps)
    return results


def _scores_there(config: ConfigDict, facts: Result, folder: Path) -> list[Result]:
    """DDPM's and DDIM's scores that an eval or a sweep left."""
    facts = facts | AS_IN_THE_PAPER | {"seed": config.seed, "num_samples": config.eval.num_samples}
    return [result for result in all_finished(facts, folder) if result["sampler"] in SCORED]
