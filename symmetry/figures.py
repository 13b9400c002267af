"""The pictures of an analysis: each function draws arrays of `experiments` into one PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import plots
from metrics import figures
from metrics.results import Result
from symmetry.critical import NAMES, RULES
from symmetry.measurements import Arrays

COLOURS = dict(zip(RULES, ("tab:red", "tab:green", "tab:purple"), strict=True))


class Marks(NamedTuple):
    """What is marked in every figure, and in that of the agreement."""

    critical: plots.Times
    auto: Sequence[Result] = ()  # runs whose late start was chosen, each with its "auto_start"


def over_time(axis, marks: Marks, ylabel: str, last: float) -> None:
    """Time runs from noise at the left to data at the right."""
    plots.mark_times(axis, marks.critical)
    axis.set(xlabel="t", ylabel=ylabel, xlim=(last, 0))
    axis.legend(fontsize=8)


def draw_potential(path: Path, arrays: Arrays, marks: Marks) -> None:
    """One pair above, the mean over pairs below; a column for each time."""
    times, angle, u = arrays["t_shown"], arrays["angle"], arrays["potential"]
    with plots.panels(path, (2.0 * len(times), 4.4), 2, len(times), sharex=True, layout="constrained") as axes:
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
    columns = np.linspace(0, len(arrays["angle"]) - 1, 16).round().astype(int)
    rows = zip(arrays["t_shown"], arrays["strips"], strict=True)
    plots.save_comparison(path, [(f"t = {t}", strip[columns]) for t, strip in rows])


def draw_pixels(path: Path, arrays: Arrays, marks: Marks) -> None:
    pixels, times = arrays["pixels"], arrays["t"]
    with plots.panels(path, (9.0, 3.4), 1, len(pixels), sharey=True, layout="constrained") as axes:
        for i, axis in enumerate(axes[0]):
            ends = arrays["normalised"][-1, :, i]
            for path_of_pixel, end in zip(arrays["normalised"][:, :, i].T, ends, strict=True):
                axis.plot(times, path_of_pixel, color="tab:red" if end > 0 else "tab:blue", linewidth=0.7, alpha=0.6)
            plots.mark_times(axis, marks.critical)
            axis.set(title=f"pixel {pixels[i]}", xlabel="t", xlim=(times[0], times[-1]))
        axes[0, 0].set_ylabel("distance from the mean / deviation")
        axes[0, -1].legend(fontsize=7)


def draw_scores(path: Path, results: Sequence[Result], marks: Marks) -> None:
    figures.draw_scores(path, results, marks.critical)


def draw_same_noise(path: Path, arrays: Arrays, marks: Marks) -> None:
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        for n_steps, curve in zip(arrays["n_steps"], arrays["distance"].T, strict=True):
            label = f"n = {n_steps}" if n_steps else "every time below"
            axis.plot(arrays["t_start"], curve, "o-", markersize=4, label=label)
        axis.axhline(arrays["to_other_noise"], color="0.6", linewidth=0.8, label="another noise")
        axis.set_yscale("log")
        over_time(axis, marks, "mean squared distance", arrays["t_start"].max() * 1.05)
        axis.set_xlabel("t_start")


def draw_correlation(path: Path, arrays: Arrays, marks: Marks) -> None:
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        for name, colour, label in (("with_start", "tab:blue", "x_0"), ("with_end", "tab:orange", "x_T")):
            curves = arrays[name]
            axis.plot(arrays["t"], curves[:, :40], color=colour, linewidth=0.4, alpha=0.3)
            axis.plot(arrays["t"], curves.mean(axis=1), color=colour, linewidth=2, label=f"with {label}, mean")
        over_time(axis, marks, "correlation of x_t over pixels", arrays["t"].max())


def draw_agreement(path: Path, arrays: Arrays, marks: Marks) -> None:
    """With a star on the curve at every start that `auto` chose."""
    times, unexplained = arrays["t"], arrays["unexplained"]
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        axis.plot(times, unexplained, "o-", markersize=3)
        axis.set_yscale("log")
        for label, starts in chosen_starts(marks.auto).items():
            heights = np.exp(np.interp(starts, times[::-1], np.log(unexplained[::-1])))
            axis.plot(starts, heights, "*", markersize=11, label=label)
        over_time(axis, marks, "share of eps unexplained", times.max())


def chosen_starts(runs: Sequence[Result]) -> dict[str, tuple[int, ...]]:
    """The starts [n] that were chosen, by a label that names the samplers that share them, and each start's n_steps."""
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
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        for rule, colour in COLOURS.items():
            times = arrays[f"t_{rule}"]
            axis.plot(times, arrays["eigenvalues"], ".", color=colour, markersize=4, label=NAMES[rule])
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(arrays["eigenvalues"].max() * 1e-5, 1e-12))
        over_time(axis, Marks({}), "variance l of a direction", arrays["t_equal_norm"].max() * 1.05)
        axis.set_xlabel("critical t")


def draw_growth(path: Path, arrays: Arrays, marks: Marks) -> None:
    """Leading eigenvalues, clipped below: near data they fall as 1 / (1 - ab)."""
    with plots.panels(path, (9.0, 3.8), 1, 2, sharey=True, layout="constrained") as axes:
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
    with plots.panels(path, plots.WIDE, layout="constrained") as axes:
        [[axis]] = axes
        axis.plot(arrays["t"], arrays["stayed"], "o-", markersize=4)
        axis.axhline(arrays["chance"], color="0.6", linewidth=0.8, label="chance")
        axis.set_ylim(0, 1.02)
        over_time(axis, marks, "probability that the class stays", arrays["t"].max())
