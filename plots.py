"""Pictures out."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from files import replacing

LEAST_SIDE = 32  # smaller images are enlarged by whole pixels, so that an eye can see them
WIDE = (9.0, 4.2)  # inches, of a picture of one panel
MOST_COLUMNS = 4

Times = Mapping[str, float]  # label to t, NaN for never


def save_image(path: Path, image: np.ndarray) -> None:
    """A uint8 [H, W, C] array, C = 1 or 3, as a PNG."""
    with replacing(path) as temporary:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(temporary)


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Tiles uint8 images [N, H, W, C] row by row, near square unless told, with a pixel of white between them."""
    columns = columns or math.isqrt(len(images) - 1) + 1
    scale = -(-LEAST_SIDE // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    blanks = -len(images) % columns
    images = np.pad(images, ((0, blanks), (0, 0), (0, 0), (0, 0)), constant_values=255)
    images = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    _, height, width, channels = images.shape
    tiles = images.reshape(-1, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, columns * width, channels)


@contextlib.contextmanager
def panels(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, **options) -> Iterator[np.ndarray]:
    """Matplotlib axes [rows, columns] to draw on, of `size` inches in all; saved as a PNG when the block succeeds."""
    import matplotlib  # takes most of a second to import

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, **options)
    try:
        yield axes
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110, bbox_inches="tight")  # widened by labels
    finally:
        pyplot.close(figure)


def save_comparison(path: Path, rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """One labelled row of images per (label, uint8 [N, H, W, C]); a column is one noise through every row."""
    width = 11
    size = (width, width / max(len(images) for _, images in rows) * len(rows))
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1, "hspace": 0.05}
    with panels(path, size, len(rows), gridspec_kw=edges) as axes:
        for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
            axis.imshow(image_grid(images, columns=len(images)).squeeze(), cmap="gray", interpolation="nearest")
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
            axis.set(xticks=[], yticks=[], frame_on=False)


def mark_times(axis, times: Times) -> None:
    """Grey vertical lines, each with its label and t in the legend."""
    styles = ("--", ":", "-.", (0, (1, 3)))
    for (label, t), style in zip(times.items(), styles, strict=False):
        if np.isfinite(t):
            axis.axvline(t, color="0.45", linestyle=style, linewidth=1, label=f"{label}, t = {t:.0f}")


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
