"""Figures: the score against the start of sampling, the candidates of an automatic start, and plans."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import plots
from core.arithmetic import ceil_div
from core.plots import Times
from metrics.results import Result, components_label
from sampling.auto_start import AutoStart

MOST_COLUMNS = 4
MARKERS = "os^Dv"  # one for each mixture


def draw_scores(path: Path, results: Sequence[Result], critical: Times) -> None:
    """Saves a PNG of scores against the late start: one panel per sampler, one line per n and mixture.

    A dashed line is the score of the same n from pure noise. Bars are standard errors, and stars are automatic starts.
    Colours show the number of steps, and markers the mixture. Runs with one step for every t (n = t + 1) form one line.
    results: scored runs with and without a late start; runs with a baseline are left out. critical: labels and times
    that are marked.
    """
    results = [run for run in results if not run["baseline"]]
    samplers = list(dict.fromkeys(run["sampler"] for run in results))
    lengths = sorted({_length(run) for run in results})
    mixtures = list(dict.fromkeys(components_label(run) for run in results if run["gls"]))
    rows = ceil_div(len(samplers), MOST_COLUMNS)
    columns = ceil_div(len(samplers), rows)
    size = plots.WIDE if columns == 1 else (max(3.4 * columns, plots.WIDE[0]), 2.7 * rows + 0.8)
    with plots.panels(path, size, rows=rows, columns=columns, sharex=True, sharey=True, layout="constrained") as axes:
        _scale_scores(axes[0, 0], results, critical)
        for axis, sampler in itertools.zip_longest(axes.flat, samplers):
            if sampler is None:
                axis.remove()
                continue
            for (i, length), (j, mixture) in itertools.product(enumerate(lengths), enumerate(mixtures or [""])):
                runs = [run for run in results if (run["sampler"], _length(run)) == (sampler, length)]
                runs = [run for run in runs if not run["gls"] or components_label(run) == mixture]
                name = ", ".join(filter(None, [f"n = {'t + 1' if length == math.inf else length}", mixture]))
                _draw_line(axis, runs, label=name, colour=f"C{i}", marker=MARKERS[j % len(MARKERS)])
            plots.mark_times(axis, critical)
            axis.set_title(sampler, fontsize=10)
        for axis in axes[:, 0]:
            axis.set_ylabel(f"{results[0]['score_name']}\n{results[0]['num_samples']:,} samples")
        for axis in axes.flat[: len(samplers)][-columns:]:
            axis.set_xlabel("t of the late start")
            axis.tick_params(labelbottom=True)
        _add_legend(axes[0, 0], with_auto=any(run.get("chooses_start") for run in results))


def _add_legend(axis: Any, with_auto: bool) -> None:
    """Adds one legend below all panels, made from the lines of one panel, because all panels have the same lines."""
    axis.plot([], [], "--", color="0.2", label="the same n from pure noise")
    if with_auto:
        axis.plot([], [], "*", color="0.2", markersize=9, label="t_start = auto")
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def _length(run: Result) -> int | float:
    """n, or infinity if the run has one step for every t."""
    return math.inf if run["n_steps"] == run["t_start"] + 1 else run["n_steps"]


def _scale_scores(axis: Any, results: Sequence[Result], critical: Times) -> None:
    """Sets a logarithmic score axis with plain numbers, and a time axis from noise (left) to data (right)."""
    from matplotlib.ticker import LogFormatter  # matplotlib takes most of a second to import

    times = [run["t_start"] for run in results if run["gls"]] or [run["t_start"] for run in results]
    times += [t for t in critical.values() if np.isfinite(t)]
    margin = 0.06 * max(times)
    axis.set(yscale="log", xlim=(max(times) + margin, max(min(times) - margin, 0)))
    for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _draw_line(axis: Any, runs: Sequence[Result], *, label: str, colour: str, marker: str) -> None:
    """Draws the runs of one sampler, n and mixture."""
    given = [run for run in runs if run["gls"] and not run.get("chooses_start")]
    given.sort(key=lambda run: run["t_start"])
    times = [run["t_start"] for run in given]
    scores = [run["score"] for run in given]
    errors = [run["score_error"] or np.nan for run in given]
    axis.plot(times, scores, f"{marker}-", color=colour, markersize=4, label=label)
    axis.errorbar(times, scores, errors, fmt="none", color=colour, elinewidth=1, capsize=2)
    for run in runs:
        if not run["gls"]:
            axis.axhline(run["score"], color=colour, linestyle="--", linewidth=1.2)
        elif run.get("chooses_start"):
            axis.plot(run["t_start"], run["score"], "*", color=colour, markersize=11, markeredgecolor="white")


def draw_candidates(path: Path, auto_start: AutoStart) -> None:
    """Saves a PNG of the distances by which an automatic start was chosen: to the reference images, and to the data."""
    with plots.panels(path, (7.0, 3.6)) as [[axis]]:
        for other in dict.fromkeys(candidate.compared_with for candidate in auto_start.candidates):
            tried = sorted(candidate for candidate in auto_start.candidates if candidate.compared_with == other)
            starts = [candidate.t_start for candidate in tried]
            distances = [candidate.distance for candidate in tried]
            axis.plot(starts, distances, marker="o", markersize=4, label=f"to the {other}, {tried[0].images} images")
        t_start = int(auto_start.timesteps[0])
        axis.axvline(t_start, color="0.35", linestyle="--", linewidth=1, label=f"chosen, t = {t_start}")
        axis.set(xlabel="start", ylabel="distance", yscale="log")
        axis.invert_xaxis()
        axis.legend(fontsize=8)


def draw_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Saves a PNG of the distances of a plan's entries, with the best entry on top. plan: the content of plan.json."""
    shown = [entry for entry in plan["entries"] if entry["distance"] is not None][:20]
    labels = [f"{entry['sampler']}, K = {entry['components']}, t = {entry['t_start']}" for entry in shown]
    with plots.panels(path, (7.0, 1.0 + 0.25 * len(shown)), layout="constrained") as [[axis]]:
        axis.barh(labels, [entry["distance"] for entry in shown])
        for row, entry in enumerate(shown):
            axis.annotate(f" {entry['images']} images", (entry["distance"], row), va="center", fontsize=7)
        axis.invert_yaxis()
        axis.set(xlabel="distance to the data", title=f"at most {plan['budget']} network calls an image")
        axis.margins(x=0.15)
