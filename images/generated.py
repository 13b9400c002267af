"""Images made by other software, to be scored: a folder of pictures, or one array file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from core.errors import UserError
from core.shapes import HostPixels, ImageShape
from images.arrays import read_images
from images.folder import ENDINGS, scan
from images.pixels import in_colours, one_line, open_picture, upright

CHANNELS = {"L": 1, "RGB": 3}  # of Pillow's modes
CHUNK = 500  # pictures per batch


def open_images(path: Path, shape: ImageShape) -> tuple[int, Iterator[tuple[HostPixels, int]]]:
    """The number of images and an iterator over batches (uint8 [B, H, W, C], B), B at most CHUNK.

    A folder is read with the rules of training data (see `images.folder.scan`), except that every picture must have
    the shape (H, W, C) already: resizing would change the score. Pictures are decoded batch by batch, in the order of
    their names.

    Raises UserError if there are no images, if `scan` reports a file that cannot be read, or if the array has another
    shape. The iterator raises UserError at the first picture that is damaged or has another shape.
    """
    if path.is_dir():
        names = _picture_names(path)
        return len(names), _read_pictures([path / name for name in names], shape)
    images = read_images(path)
    if images.shape[1:] != shape or not len(images):
        expected = ", ".join(map(str, shape))
        raise UserError(f"{path}: expected uint8 [N, {expected}], got {images.dtype} {list(images.shape)}")
    chunks = np.split(images, range(CHUNK, len(images), CHUNK))
    return len(images), ((chunk, len(chunk)) for chunk in chunks)


def _picture_names(folder: Path) -> list[str]:
    entries, _ = scan(folder)
    for entry in entries:
        if entry.trouble:
            raise UserError(f"{folder / entry.name}: {entry.trouble}; remove it or replace it")
    if not entries:
        raise UserError(f"{folder}: holds no images ({', '.join(ENDINGS)})")
    return [entry.name for entry in entries]


def _read_pictures(paths: list[Path], shape: ImageShape) -> Iterator[tuple[HostPixels, int]]:
    for start in range(0, len(paths), CHUNK):
        batch = np.stack([_read_picture(path, shape) for path in paths[start : start + CHUNK]])
        yield batch, len(batch)


def _read_picture(path: Path, shape: ImageShape) -> UInt8[np.ndarray, "height width channels"]:
    try:
        with open_picture(path) as opened:
            picture = upright(opened)
    except Exception as error:  # Pillow raises many types of exceptions for damaged files
        raise UserError(f"{path}: not a readable image ({one_line(error)})") from error
    if (picture.height, picture.width, CHANNELS.get(picture.mode)) != shape:
        found = f"a {picture.mode} image of {picture.height} x {picture.width} pixels"
        raise UserError(f"{path}: {found}, but the config requires height, width and channels {list(shape)}")
    return np.asarray(in_colours(picture, shape[2])).reshape(shape)
