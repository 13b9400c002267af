"""Images in one array file: .npy, .npz, and the IDX format of MNIST."""

import gzip
import math
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped, UInt8
from PIL import Image

from core import files
from core.errors import UserError
from core.shapes import HostPixels
from images.decoded import NO_LABEL, Pictures

IDX_NAMES = {"train": "train", "test": "t10k"}  # file names of http://yann.lecun.com/exdb/mnist
IDX_IMAGES = "images-idx3-ubyte"
IDX_LABELS = "labels-idx1-ubyte"

Labels = Integer[np.ndarray, "batch"]


def pictures(images: HostPixels, labels: Labels | None, chosen: Integer[np.ndarray, "chosen"]) -> Pictures:
    """The images with the indices `chosen`, as pictures that can be decoded like files."""

    def open_one(i: int) -> tuple[Image.Image, int]:
        index = chosen[i]
        pixels = images[index, ..., 0] if images.shape[3] == 1 else images[index]
        label = NO_LABEL if labels is None else int(labels[index])
        return Image.fromarray(pixels), label

    return Pictures(chosen.tolist(), open_one)


def read_array(path: Path) -> tuple[HostPixels, Labels | None]:
    """The images in a file, and their labels if an .npz has an array "labels".

    Raises UserError if the file cannot be read, if the images are not uint8 [N, H, W] or [N, H, W, 1, 3 or 4], or if
    the labels are not one non-negative integer per image. See `read_images` for the formats.
    """
    images, labels = _read(path)
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or (labels < 0).any()):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{path}: labels must be integers from 0, one for each of {len(images)} images; found {found}")
    return images, labels


def read_images(path: Path) -> HostPixels:
    """The images in a file, without labels; a missing channel axis is added.

    An .npy is mapped into memory. A file with the ending or name of IDX is read as such (the ending .gz is
    decompressed). Any other file is read as .npz: its array "images", or its only array.

    Raises UserError if the file cannot be read or the images are not uint8 [N, H, W] or [N, H, W, 1, 3 or 4].
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[HostPixels, Shaped[np.ndarray, "..."] | None]:
    """Checked images and unchecked labels."""
    labels = None
    if path.suffix == ".npy":
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: not a readable .npy file ({error})") from error
    elif IDX_IMAGES in path.name and path.suffix != ".npz":
        images = read_idx(path)
    else:
        arrays = files.read_npz(path, required=set())
        if "images" not in arrays and len(arrays) != 1:
            names = ", ".join(sorted(arrays)) or "none"
            raise UserError(f'{path}: needs an array "images", or exactly one array; it holds {names}')
        images = arrays.get("images", next(iter(arrays.values())))
        labels = arrays.get("labels")
    _check_images(path, images)
    return images[..., None] if images.ndim == 3 else images, labels


def _check_images(path: Path, images: Shaped[np.ndarray, "..."]) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))):
        found = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"{path}: found {found}, but images are uint8 [N, H, W] or [N, H, W, 1, 3 or 4]")
    if 0 in images.shape[1:]:
        raise UserError(f"{path}: images of shape {list(images.shape[1:])} have no pixels")


def idx_pair(folder: Path, split: str) -> tuple[Path | None, Path | None]:
    """The IDX files of a split's images and labels, plain or gzipped; None for a file that does not exist."""
    found = []
    for kind in (IDX_IMAGES, IDX_LABELS):
        name = f"{IDX_NAMES[split]}-{kind}"
        candidates = (folder / name, folder / f"{name}.gz")
        found.append(next((path for path in candidates if path.exists()), None))
    images, labels = found
    return images, labels


def read_idx_pair(folder: Path, split: str) -> tuple[HostPixels, Labels | None]:
    """The images of a split, and its labels if the folder has them.

    Raises UserError if the images are missing, a file cannot be read, or the numbers of images and labels differ.
    """
    images_path, labels_path = idx_pair(folder, split)
    if images_path is None:
        raise UserError(f"no {IDX_NAMES[split]}-{IDX_IMAGES}[.gz] in {folder}: the {split} split is missing")
    images = read_images(images_path)
    labels = read_idx(labels_path) if labels_path else None
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(f"{folder}: {split} images {list(images.shape)} and labels {list(labels.shape)} do not match")
    return images, labels


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of bytes; a file with the ending .gz is decompressed.

    The format: two zero bytes, the type 8, the rank, the sizes as big-endian int32, then the values. Raises UserError
    if the file cannot be read, has another format or is incomplete.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path}: not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4).tolist()
    if len(content) - 4 - 4 * rank != math.prod(shape):
        raise UserError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}: it is cut or broken")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
