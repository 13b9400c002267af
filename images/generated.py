"""Reads images of other software for scoring: a folder of pictures or IDX files, a zip of pictures, an array file."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from core.errors import UserError
from core.shapes import HostPixels, ImageShape
from images import local
from images.arrays import read_images
from images.decoded import Decoded, Pictures, decode, unusable
from images.pixels import exact_pixels

CHUNK = 500  # pictures per batch


class OpenedImages(NamedTuple):
    """Images that have been checked and can be read once.

    Attributes:
      path: the folder or file.
      count: the number of images.
      batches: yields pairs (uint8 [B, H, W, C], B), where B is at most CHUNK.
    """

    path: Path
    count: int
    batches: Iterator[tuple[HostPixels, int]]


def open_images(path: Path, shape: ImageShape) -> OpenedImages:
    """Checks and opens all images of a folder (training and test), of a zip of pictures, or of an array file.

    Pictures are read as for training (`images.local`), except that every picture must already have the shape (H, W, C),
    because a resize would change the score. All pictures are decoded once for the check, and again batch by batch, in
    the order of their names. One printed line counts the files that are not images.

    Raises UserError if there are no images, if one of them cannot be used, or if the array has another shape. The
    iterator raises UserError if a picture has become unusable since the check.
    """
    if path.is_dir() or path.suffix == ".zip":
        source = (local.folder_source if path.is_dir() else local.zip_source)(path, local.ALL)
        if source.note:
            print(source.note)
        pictures = source.read()
        count = len(pictures.names)
        decoded = decode(pictures, lambda picture: exact_pixels(picture, shape))
        _require_usable(path, pictures.names, tqdm(decoded, f"check {path.name}", count, unit="image"))
        return OpenedImages(path, count, _read_pictures(path, pictures, shape))
    images = read_images(path)
    if images.shape[1:] != shape or not len(images):
        expected = ", ".join(map(str, shape))
        raise UserError(f"{path}: expected uint8 [N, {expected}], got {images.dtype} {list(images.shape)}")
    chunks = np.split(images, range(CHUNK, len(images), CHUNK))
    return OpenedImages(path, len(images), ((chunk, len(chunk)) for chunk in chunks))


def _read_pictures(path: Path, pictures: Pictures, shape: ImageShape) -> Iterator[tuple[HostPixels, int]]:
    decoded = decode(pictures, lambda picture: exact_pixels(picture, shape))
    for start in range(0, len(pictures.names), CHUNK):
        results = list(itertools.islice(decoded, CHUNK))
        _require_usable(path, pictures.names[start : start + CHUNK], results)
        yield np.stack([pixels for pixels, _ in results]), len(results)


def _require_usable(path: Path, names: Sequence[str | int], results: Iterable[Decoded]) -> None:
    skipped = [(name, result) for name, result in zip(names, results, strict=True) if isinstance(result, str)]
    if skipped:
        raise UserError(f"{unusable(path, skipped, len(names))}; all must be usable: remove or replace these")
