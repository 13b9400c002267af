"""Saving pictures: PNG images, image grids, labelled rows of images, and matplotlib panels."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from core.arithmetic import ceil_div
from core.errors import warn
from core.files import replacing
from core.parallel import is_first
from core.shapes import HostPixels

LEAST_SIDE = 32  # pixels; smaller images are enlarged by an integer factor
WIDE = (9.0, 4.2)  # inches, the size of a figure with one panel

Times = Mapping[str, float]
"""Maps labels to times t; NaN marks an event that never happens."""


def attempt(draw: Callable[..., None], path: Path, *contents: Any) -> bool:
    """Calls draw(path, *contents), which saves a picture, on the first process. Returns whether a picture was saved.

    If the picture cannot be drawn, only a warning is printed. Save the results that the picture shows before this call.
    """
    if not is_first():
        return False
    try:
        draw(path, *contents)
    except Exception as error:  # matplotlib, its settings, fonts and the disk raise any type
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        warn(f"{path} is not drawn ({reason}); the results are saved without this picture")
        return False
    return True


def save_image(path: Path, image: UInt8[np.ndarray, "height width channels"]) -> None:
    """Saves an image of 1 or 3 channels as a PNG."""
    with replacing(path) as temporary:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(temporary)


def image_grid(images: HostPixels, columns: int | None = None) -> UInt8[np.ndarray, "grid_height grid_width channels"]:
    """The images on a grid, row by row, with a white border of one pixel around each.

    Without `columns` the grid is close to square. Images smaller than LEAST_SIDE are enlarged.
    """
    columns = columns or math.isqrt(len(images) - 1) + 1
    scale = ceil_div(LEAST_SIDE, images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    blanks = -len(images) % columns
    images = np.pad(images, ((0, blanks), (0, 0), (0, 0), (0, 0)), constant_values=255)
    images = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    _, height, width, channels = images.shape
    tiles = images.reshape(-1, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, columns * width, channels)


@contextlib.contextmanager
def panels(
    path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, layout: str | None = None, **options: Any
) -> Iterator[Shaped[np.ndarray, "rows columns"]]:
    """Yields matplotlib axes, rows by columns, and saves the figure as a PNG if the block succeeds.

    size: width and height of the whole figure in inches. layout: passed to `Figure`. options: passed to
    `Figure.subplots`. Neither a display nor a matplotlib backend is used.
    """
    from matplotlib.figure import Figure  # takes most of a second to import

    figure = Figure(figsize=size, layout=layout)
    yield figure.subplots(rows, columns, squeeze=False, **options)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")  # includes labels outside the axes


def save_grid(path: Path, images: HostPixels) -> None:
    """Saves the images on a grid, as a PNG."""
    save_image(path, image_grid(images))


def save_comparison(path: Path, rows: Sequence[tuple[str, HostPixels]]) -> None:
    """Saves one row of images per (label, images), as a PNG; images in one column start from the same noise."""
    width = 11
    size = (width, width / max(len(images) for _, images in rows) * len(rows))
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1, "hspace": 0.05}
    with panels(path, size, len(rows), gridspec_kw=edges) as axes:
        for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
            axis.imshow(image_grid(images, columns=len(images)).squeeze(), cmap="gray", interpolation="nearest")
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
            axis.set(xticks=[], yticks=[], frame_on=False)


def mark_times(axis: Any, times: Times) -> None:
    """Draws a grey vertical line at each time, with its label and t in the legend. Skips NaN."""
    styles = ("--", ":", "-.", (0, (1, 3)))
    for (label, t), style in zip(times.items(), styles, strict=False):
        if np.isfinite(t):
            axis.axvline(t, color="0.45", linestyle=style, linewidth=1, label=f"{label}, t = {t:.0f}")
