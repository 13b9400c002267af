"""The study of one trained network: experiments, their numbers and pictures, and a report of all."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import files
import tables
from analysis import experiments, figures, report
from analysis.experiments import Arrays, Subject
from scoring import Result
from symmetry.critical import NAMES, RULES, leading_times


class Figure(NamedTuple):
    name: str  # of the PNG
    title: str
    explanation: str
    draw: Callable[[Path, Arrays, figures.Marks], None]


EXPERIMENTS: dict[Callable[[Subject], Arrays], tuple[Figure, ...]] = {
    experiments.cascade: (
        Figure(
            "cascade",
            "Spectrum and critical times",
            "Each dot is one direction of the data's covariance: its variance, and when it becomes unstable by each of "
            "three rules. Broad directions decide first; no network is involved.",
            figures.draw_cascade,
        ),
    ),
    experiments.growth: (
        Figure(
            "growth",
            "Measured instability",
            "The leading eigenvalues of the drift's Jacobian: where one rises above zero, images are pushed apart. "
            "Left at the network's central fixed point, where it was never trained, so that its numbers there mean "
            "little (gaps: no fixed point found); right at noised images, where it was.",
            figures.draw_growth,
        ),
    ),
    experiments.agreement: (
        Figure(
            "agreement",
            "Is the marginal still Gaussian?",
            "The share of the network's noise prediction that the Gaussian of the data's mean and covariance does "
            "not explain. While it is small, a late start from that Gaussian loses little. Stars, where there are any, "
            "are the starts that t_start = auto chose.",
            figures.draw_agreement,
        ),
    ),
    experiments.generation: (
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
    experiments.same_noise: (
        Figure(
            "same_noise",
            "Same noise, same picture",
            "How far the images of late starts lie from those that the full DDIM, asked at every time, makes of the "
            "same noise. The grey line is the distance between images of different noises.",
            figures.draw_same_noise,
        ),
    ),
    experiments.correlation: (
        Figure(
            "correlation",
            "How long noising remembers",
            "The correlation of a noised image with the image that it was, and with the noise that it ends in. Thin "
            "lines are single images.",
            figures.draw_correlation,
        ),
    ),
    experiments.u_turn: (
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
        if experiment is experiments.growth:
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
