"""Images that any software made: a folder of PNG and JPG files, or an .npz of uint8."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import UserError
from core.files import read_npz

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {"L": 1, "RGB": 3}
CHUNK = 500

Shape = tuple[int, int, int]


def open_images(path: Path, shape: Shape) -> tuple[int, Iterator[tuple[np.ndarray, int]]]:
    """How many images there are, and they themselves as batches (uint8 [B, H, W, C], B).

    Files come in the order of their names. Raises UserError where there are none, and, as they are read, where one is
    not of the shape (H, W, C): a silent resize would be part of the score.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{path}: holds no images ({', '.join(SUFFIXES)})")
        return len(files), _read_files(files, shape)
    images = _read_array(path, shape)
    return len(images), ((batch, len(batch)) for batch in np.split(images, range(CHUNK, len(images), CHUNK)))


def _read_array(path: Path, shape: Shape) -> np.ndarray:
    """The array `images`, or the only one there is."""
    arrays = read_npz(path, required=set())
    name = "images" if "images" in arrays else next(iter(arrays), None)
    if name is None or (name != "images" and len(arrays) > 1):
        raise UserError(f"{path}: expected one array, or one called images; it holds {', '.join(sorted(arrays))}")
    images = arrays[name]
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise UserError(f"{path}: expected uint8 [N, {', '.join(map(str, shape))}], got {images.dtype} {images.shape}")
    return images


def _read_files(files: list[Path], shape: Shape) -> Iterator[tuple[np.ndarray, int]]:
    for start in range(0, len(files), CHUNK):
        batch = np.stack([_read_file(file, shape) for file in files[start : start + CHUNK]])
        yield batch, len(batch)


def _read_file(path: Path, shape: Shape) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error
    found = (image.height, image.width, MODES.get(image.mode))
    if found != shape:
        raise UserError(f"{path}: a {image.mode} image of {found[:2]}, where the config asks for {list(shape)}")
    return np.asarray(image).reshape(shape)
