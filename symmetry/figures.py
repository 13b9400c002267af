"""The figures of an analysis, with one function draw_... for each.

Each function saves a PNG at `path`. Its parameters are the path, the data, and the times to be marked, which not all
figures use. The data are the result of one of `measurements`. For `draw_scores` they are the results of runs.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from core import plots
from metrics import figures
from metrics.results import Result
from sampling.late_start import ONE
from symmetry.critical import NAMES, RULES
from symmetry.measurements import Arrays

COLOURS = dict(zip(RULES, ("tab:red", "tab:green", "tab:purple"), strict=True))


class Marks(NamedTuple):
    """Times that are marked in the figures."""

    critical: plots.Times  # critical times, marked in all figures over time
    auto: Sequence[Result] = ()  # runs with an automatic start, marked in the figure of the agreement
    scored: Sequence[Result] = ()  # runs whose best starts are marked in the figure of the splits


def over_time(axis: Any, marks: Marks, *, ylabel: str, last: ArrayLike) -> None:
    """Adds critical times, labels and a legend to matplotlib axes over t. t descends from `last` to 0."""
    plots.mark_times(axis, marks.critical)
    axis.set(xlabel="t", ylabel=ylabel, xlim=(last, 0))
    axis.legend(fontsize=8)


def draw_potential(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws the potential of one pair, and below it the mean over all pairs, with one column per time."""
    times = arrays["t_shown"]
    angle = arrays["angle"]
    u = arrays["potential"]
    size = (2.0 * len(times), 4.4)
    with plots.panels(path, size, rows=2, columns=len(times), sharex=True, layout="constrained") as axes:
        for row, curves, label in ((axes[0], u[:, 0], "u, one pair"), (axes[1], u.mean(axis=1), "u, mean of pairs")):
            row[0].set_ylabel(label)
            for axis, curve in zip(row, curves, strict=True):
                axis.plot(angle, curve, color="tab:blue")
                axis.tick_params(labelsize=7)
                for image in (0, np.pi / 2):
                    axis.axvline(image, color="0.6", linewidth=0.8, linestyle=":")
                axis.set_xticks([0, np.pi / 2], ["image 1", "image 2"])
        for axis, t in zip(axes[0], times, strict=True):
            axis.set_title(f"t = {t}", fontsize=10)


def draw_strips(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws predicted images along the path between two states, with one row per time."""
    columns = np.linspace(0, len(arrays["angle"]) - 1, 16).round().astype(int)
    rows = zip(arrays["t_shown"], arrays["strips"], strict=True)
    plots.save_comparison(path, [(f"t = {t}", strip[columns]) for t, strip in rows])


def draw_pixels(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws single pixels of all trajectories, with one panel per pixel. Colours show the sign of the final value."""
    pixels = arrays["pixels"]
    times = arrays["t"]
    with plots.panels(path, (9.0, 3.4), columns=len(pixels), sharey=True, layout="constrained") as axes:
        for i, axis in enumerate(axes[0]):
            trajectories = arrays["normalised"][:, :, i].T
            for values in trajectories:
                axis.plot(times, values, color="tab:red" if values[-1] > 0 else "tab:blue", linewidth=0.7, alpha=0.6)
            plots.mark_times(axis, marks.critical)
            axis.set(title=f"pixel {pixels[i]}", xlabel="t", xlim=(times[0], times[-1]))
        axes[0, 0].set_ylabel("distance from the mean / deviation")
        axes[0, -1].legend(fontsize=7)


def draw_scores(path: Path, results: Sequence[Result], marks: Marks) -> None:
    """Draws the scores of runs against their start."""
    figures.draw_scores(path, results, marks.critical)


def draw_same_noise(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws the distance between late-start images and images of full DDIM, with one line per number of steps."""
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        for n_steps, curve in zip(arrays["n_steps"], arrays["distance"].T, strict=True):
            label = f"n = {n_steps}" if n_steps else "every time below"
            axis.plot(arrays["t_start"], curve, "o-", markersize=4, label=label)
        axis.axhline(arrays["to_other_noise"], color="0.6", linewidth=0.8, label="another noise")
        axis.set_yscale("log")
        over_time(axis, marks, ylabel="mean squared distance", last=arrays["t_start"].max() * 1.05)
        axis.set_xlabel("t_start")


def draw_correlation(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws correlations of noised images with both ends of their trajectories. Thick lines are means over images."""
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        for name, colour, label in (("with_start", "tab:blue", "x_0"), ("with_end", "tab:orange", "x_T")):
            curves = arrays[name]
            axis.plot(arrays["t"], curves[:, :40], color=colour, linewidth=0.4, alpha=0.3)
            axis.plot(arrays["t"], curves.mean(axis=1), color=colour, linewidth=2, label=f"with {label}, mean")
        over_time(axis, marks, ylabel="correlation of x_t over pixels", last=arrays["t"].max())


def draw_agreement(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws the unexplained fraction of eps over time, with a star on the curve at every automatic start."""
    times = arrays["t"]
    unexplained = arrays["unexplained"]
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        axis.plot(times, unexplained, "o-", markersize=3)
        axis.set_yscale("log")
        for label, starts in automatic_starts(marks.auto).items():
            heights = np.exp(np.interp(starts, times[::-1], np.log(unexplained[::-1])))
            axis.plot(starts, heights, "*", markersize=11, label=label)
        over_time(axis, marks, ylabel="share of eps unexplained", last=times.max())


def draw_splits(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws over time, with one line per mixture, how much x_t reveals, and the unexplained fraction of eps."""
    times = arrays["t"]
    with plots.panels(path, (11.0, 4.2), columns=2, layout="constrained") as [[revealed, unexplained]]:
        for i, components in enumerate(arrays["components"].tolist()):
            colour = f"C{i}"
            if components != ONE:
                revealed.plot(times, arrays["revealed"][i], "o-", color=colour, markersize=3, label=components)
                revealed.axvline(arrays["t_between"][i], color=colour, linestyle=":")
            curve = arrays["unexplained"][i]
            unexplained.plot(times, curve, "o-", color=colour, markersize=3, label=components)
            for start in best_starts(marks.scored, components):
                height = np.exp(np.interp(start, times[::-1], np.log(curve[::-1])))
                unexplained.plot(start, height, "*", color=colour, markersize=11)
        unexplained.set_yscale("log")
        over_time(revealed, marks, ylabel="share of the component that x_t reveals", last=times.max())
        over_time(unexplained, marks, ylabel="share of eps unexplained", last=times.max())


def best_starts(results: Sequence[Result], components: str) -> list[int]:
    """Returns, for each sampler and n_steps, the late start with the best score.

    components: the value of sampling.components of the runs that are considered.
    """
    cells: dict[tuple[str, int], list[Result]] = {}
    for run in results:
        if run["gls"] and run.get("components", ONE) == components:
            cells.setdefault((run["sampler"], run["n_steps"]), []).append(run)
    return [min(cell, key=lambda run: run["score"])["t_start"] for cell in cells.values()]


def automatic_starts(runs: Sequence[Result]) -> dict[str, tuple[int, ...]]:
    """Groups the automatic starts of runs by sampler. The keys are labels for the legend.

    A value has one start for each n_steps, in ascending order of n_steps. Samplers with equal values share one entry,
    whose label names these samplers and the n_steps of each start.
    """
    by_sampler: dict[str, dict[int, int]] = {}
    for run in sorted(runs, key=lambda run: run["n_steps"]):
        by_sampler.setdefault(run["sampler"], {})[run["n_steps"]] = run["auto_start"]["t_start"]
    sharing: dict[tuple, list[str]] = {}
    for sampler, starts in by_sampler.items():
        sharing.setdefault(tuple(starts.items()), []).append(sampler)
    labelled = {}
    for starts, samplers in sharing.items():
        listed = ", ".join(f"{t} (n = {n})" for n, t in starts)
        label = textwrap.fill(f"t_start = auto for {', '.join(samplers)}: {listed}", 45)
        labelled[label] = tuple(t for _, t in starts)
    return labelled


def draw_cascade(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws the eigenvalues of the data's covariance against their critical times, with one colour per rule."""
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        for rule, colour in COLOURS.items():
            times = arrays[f"t_{rule}"]
            axis.plot(times, arrays["eigenvalues"], ".", color=colour, markersize=4, label=NAMES[rule])
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(arrays["eigenvalues"].max() * 1e-5, 1e-12))
        last = arrays["t_equal_norm"].max() * 1.05
        over_time(axis, Marks(critical={}), ylabel="variance l of a direction", last=last)
        axis.set_xlabel("critical t")


def draw_growth(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws growth rates over time.

    The vertical axis ends at -1, because near data the rates fall like -1 / (1 - ab).
    """
    with plots.panels(path, (9.0, 3.8), columns=2, sharey=True, layout="constrained") as axes:
        at_images = arrays["growth_images"].mean(axis=1)
        for axis, curves, title in (
            (axes[0, 0], arrays["growth_fixed_point"], "at the network's fixed point"),
            (axes[0, 1], at_images, "at noised images, mean"),
        ):
            axis.plot(arrays["t"], curves, ".-", markersize=3, linewidth=1)
            axis.axhline(0, color="0.6", linewidth=0.8)
            plots.mark_times(axis, marks.critical)
            axis.set(title=title, xlabel="t", xlim=(arrays["t"].max(), 0), ylim=(-1, 1))
        axes[0, 0].set_ylabel("growth per unit of beta")
        axes[0, 1].legend(fontsize=7)


def draw_u_turn(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Draws the fraction of images that keep their class against the time to which they are noised."""
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        axis.plot(arrays["t"], arrays["stayed"], "o-", markersize=4)
        axis.axhline(arrays["chance"], color="0.6", linewidth=0.8, label="chance")
        axis.set_ylim(0, 1.02)
        over_time(axis, marks, ylabel="probability that the class stays", last=arrays["t"].max())
