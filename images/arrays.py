"""Images that lie in one file: .npy and .npz of uint8, and the IDX files of MNIST and its kin."""

import gzip
import math
from pathlib import Path

import numpy as np
from PIL import Image

from core import files
from core.errors import UserError
from images.decoded import NO_LABEL, Pictures

IDX_NAMES = {"train": "train", "test": "t10k"}  # http://yann.lecun.com/exdb/mnist
IDX_IMAGES, IDX_LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"

Labelled = tuple[np.ndarray, np.ndarray | None]  # uint8 images [N, H, W] or [N, H, W, C], and int labels [N]


def pictures(images: np.ndarray, labels: np.ndarray | None, chosen: np.ndarray) -> Pictures:
    """Those of the images that `chosen` (int [n]) names."""

    def open_one(i: int) -> tuple[Image.Image, int]:
        k = chosen[i]
        pixels = images[k, ..., 0] if images.shape[3:] == (1,) else images[k]
        return Image.fromarray(pixels), NO_LABEL if labels is None else int(labels[k])

    return Pictures(chosen.tolist(), open_one)


def read_array(path: Path) -> Labelled:
    """A .npy, mapped into memory; a .npz with "images" (or one array alone) and perhaps "labels"; one IDX file.

    Raises UserError unless the file holds uint8 images [N, H, W] or [N, H, W, 1, 3 or 4].
    """
    labels = None
    if path.suffix == ".npy":
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: not a readable .npy file ({error})") from error
    elif path.suffix == ".npz":
        arrays = files.read_npz(path, required=set())
        if "images" not in arrays and len(arrays) != 1:
            raise UserError(f'{path}: needs an array "images"; it holds {", ".join(sorted(arrays)) or "none"}')
        images, labels = arrays.get("images", next(iter(arrays.values()))), arrays.get("labels")
    else:
        images = read_idx(path)
    _check(path, images, labels)
    return images, labels


def _check(path: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))):
        found = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"{path}: found {found}, but images are uint8 [N, H, W] or [N, H, W, 1, 3 or 4]")
    if 0 in images.shape[1:]:
        raise UserError(f"{path}: images of shape {list(images.shape[1:])} have no pixels")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or (labels < 0).any()):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{path}: labels are integers from 0, one for each of {len(images)} images; found {found}")


def idx_pair(folder: Path, split: str) -> tuple[Path | None, Path | None]:
    """The files of a split's images and labels, plain or gzipped, where the folder has them."""
    names = (f"{IDX_NAMES[split]}-{kind}" for kind in (IDX_IMAGES, IDX_LABELS))
    candidates = [(folder / name, folder / f"{name}.gz") for name in names]
    images, labels = (next((path for path in paths if path.exists()), None) for paths in candidates)
    return images, labels


def read_idx_pair(folder: Path, split: str) -> Labelled:
    """The images of a split, and its labels where the folder has them. Raises UserError where they do not match."""
    images_path, labels_path = idx_pair(folder, split)
    if images_path is None:
        raise UserError(f"no {IDX_NAMES[split]}-{IDX_IMAGES}[.gz] in {folder}: the {split} split is missing")
    images, labels = read_array(images_path)[0], read_idx(labels_path) if labels_path else None
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(f"{folder}: {split} images {list(images.shape)} and labels {list(labels.shape)} do not match")
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, the rank, the sizes as big-endian int32, then the values."""
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
