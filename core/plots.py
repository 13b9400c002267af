"""Pictures: PNG images, image grids, labelled rows of images, and matplotlib panels."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from core.files import replacing

LEAST_SIDE = 32  # smaller images are enlarged by whole pixels, so that an eye can see them
WIDE = (9.0, 4.2)  # inches, of a picture of one panel
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
