"""Figures of scores: score against the start of sampling, and the curve of an automatic start."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import plots
from core.plots import WIDE, Times, mark_times, panels
from sampling.auto_start import Choice

MOST_COLUMNS = 4


def draw_scores(path: Path, results: Sequence[Mapping[str, Any]], critical: Times) -> None:
    """Score against the late start: a panel for every sampler, a line for every n; dashed, the same n from pure noise.

    results: what result.json holds of scored runs, with a late start or without; those of baselines are left out. Runs
    of one step for every t are one line, though each start has its own n. Bars are standard errors, stars the starts
    that `auto` chose. critical: times to be marked.
    """
    results = [run for run in results if not run["baseline"]]
    samplers = list(dict.fromkeys(run["sampler"] for run in results))
    lengths = sorted({_length(run) for run in results})
    rows = -(-len(samplers) // MOST_COLUMNS)
    columns = -(-len(samplers) // rows)
    size = WIDE if columns == 1 else (max(3.4 * columns, WIDE[0]), 2.7 * rows + 0.8)
    with panels(path, size, rows, columns, sharex=True, sharey=True, layout="constrained") as axes:
        _scale_scores(axes[0, 0], results, critical)
        for axis, sampler in itertools.zip_longest(axes.flat, samplers):
            if sampler is None:
                axis.remove()
                continue
            for i, length in enumerate(lengths):
                runs = [run for run in results if (run["sampler"], _length(run)) == (sampler, length)]
                _draw_line(axis, runs, f"n = {'t + 1' if length == math.inf else length}", f"C{i}")
            mark_times(axis, critical)
            axis.set_title(sampler, fontsize=10)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"{results[0]['score_name']}\n{results[0]['num_samples']:,} samples")
        for axis in axes.flat[: len(samplers)][-columns:]:
            axis.set_xlabel("t of the late start")
            axis.tick_params(labelbottom=True)
        _add_legend(axes[0, 0], any(run.get("chooses_start") for run in results))


def _add_legend(axis, chosen: bool) -> None:
    """For all panels, below them; every one has the lines of the first."""
    axis.plot([], [], "--", color="0.2", label="the same n from pure noise")
    if chosen:
        axis.plot([], [], "*", color="0.2", markersize=9, label="t_start = auto")
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def _length(run: Mapping[str, Any]) -> float:
    """n; infinite for one step for every t."""
    return math.inf if run["n_steps"] == run["t_start"] + 1 else run["n_steps"]


def _scale_scores(axis, results: Sequence[Mapping[str, Any]], critical: Times) -> None:
    """A logarithmic axis with plain numbers, and time from noise at the left to data at the right."""
    from matplotlib.ticker import LogFormatter

    times = [run["t_start"] for run in results if run["gls"]] or [run["t_start"] for run in results]
    times += [t for t in critical.values() if np.isfinite(t)]
    margin = 0.06 * max(times)
    axis.set(yscale="log", xlim=(max(times) + margin, max(min(times) - margin, 0)))
    for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _draw_line(axis, runs: Sequence[Mapping[str, Any]], label: str, colour: str) -> None:
    late = sorted((run for run in runs if run["gls"]), key=lambda run: run["t_start"])
    given, chosen = ([run for run in late if bool(run.get("chooses_start")) is auto] for auto in (False, True))
    times, scores = ([run[name] for run in given] for name in ("t_start", "score"))
    errors = [run["score_error"] or np.nan for run in given]
    axis.plot(times, scores, "o-", color=colour, markersize=4, label=label)
    axis.errorbar(times, scores, errors, fmt="none", color=colour, elinewidth=1, capsize=2)
    for run in chosen:
        axis.plot(run["t_start"], run["score"], "*", color=colour, markersize=11, markeredgecolor="white")
    for run in (run for run in runs if not run["gls"]):
        axis.axhline(run["score"], color=colour, linestyle="--", linewidth=1.2)


def draw_curve(path: Path, choice: Choice) -> None:
    """The distances that the start was chosen by, as a PNG."""
    with plots.panels(path, (7.0, 3.6)) as [[axis]]:
        for images in sorted({images for _, images, _ in choice.curve}):
            points = sorted((start, distance) for start, count, distance in choice.curve if count == images)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"{images} images")
        t_start = int(choice.timesteps[0])
        axis.axvline(t_start, color="0.35", linestyle="--", linewidth=1, label=f"chosen, t = {t_start}")
        axis.set(xlabel="start", ylabel="distance of the trial", yscale="log")
        axis.invert_xaxis()
        axis.legend(fontsize=8)
