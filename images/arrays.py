"""Reads images from one array file: .npy, .npz or IDX."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped
from PIL import Image

from core import files
from core.errors import UserError
from core.shapes import HostPixels
from images.content import KINDS, kind_of
from images.decoded import NO_LABEL, Pictures
from images.idx import Pair, read_idx

Labels = Integer[np.ndarray, "batch"]
ROWS = 4096  # number of latents that are checked at a time


def pictures(images: HostPixels, labels: Labels | None, chosen: Integer[np.ndarray, "chosen"]) -> Pictures:
    """The images with the indices `chosen`, in the form that `images.decoded` decodes."""

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


def read_pair(pair: Pair) -> tuple[HostPixels, Labels | None]:
    """The images and labels of a pair of IDX files. Raises UserError if a file is unreadable or they do not match."""
    images = read_images(pair.images)
    labels = read_idx(pair.labels) if pair.labels else None
    if labels is not None and labels.shape != images.shape[:1]:
        shapes = f"images {list(images.shape)} and labels {list(labels.shape)}"
        raise UserError(f"{pair.images} and {pair.labels.name}: {shapes} do not match")
    return images, labels


def read_images(path: Path) -> HostPixels:
    """The images in a file, without labels; a missing channel axis is added.

    An .npy is mapped into memory. From an .npz, the array "images" is read, or the only array if there is just one.

    Raises UserError if the file cannot be read or the images are not uint8 [N, H, W] or [N, H, W, 1, 3 or 4].
    """
    return _read(path)[0]


def read_latents(path: Path) -> Float[np.ndarray, "images height width channels"]:
    """Opens an .npy of floats [N, height, width, channels], mapped into memory.

    Raises UserError if the file cannot be read, is not such an array, or contains NaN or infinity.
    """
    try:
        latents = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from error
    if not isinstance(latents, np.ndarray) or latents.dtype.kind != "f" or latents.ndim != 4 or not latents.size:
        found = f"{latents.dtype} {list(latents.shape)}" if isinstance(latents, np.ndarray) else "an archive"
        raise UserError(f"{path}: found {found}, but latents are floats [N, height, width, channels]")
    for start in range(0, len(latents), ROWS):
        if not np.isfinite(latents[start : start + ROWS]).all():
            raise UserError(f"{path}: latents {start} to {start + ROWS - 1} hold NaN or infinity")
    return latents


def require_array(path: Path) -> None:
    """Raises UserError if the file is not an .npy, .npz or IDX file."""
    _array_kind(path)


def _array_kind(path: Path) -> str:
    kind = kind_of(path) if path.is_file() else ""
    if kind == "picture":
        raise UserError(f"{path} has the name or the first bytes of a picture; images are read from {KINDS}")
    if not kind:
        raise UserError(f"{path}: unsupported file type; images are read from {KINDS}")
    return kind


def _read(path: Path) -> tuple[HostPixels, Shaped[np.ndarray, "..."] | None]:
    """Reads a file; the images are checked, the labels are not."""
    kind = _array_kind(path)
    labels = None
    if kind == "npy":
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: not a readable .npy file ({error})") from error
    elif kind == "idx":
        images = read_idx(path)
    else:
        arrays = files.read_npz(path, required=set())
        if "images" not in arrays and len(arrays) != 1:
            names = ", ".join(sorted(arrays)) or "none"
            raise UserError(f'{path}: needs an array "images", or exactly one array; it holds {names}')
        images = arrays.get("images", next(iter(arrays.values())))
        labels = arrays.get("labels")
    _check_images(path, images, may_be_one=kind != "idx")
    return images[..., None] if images.ndim == 3 else images, labels


def _check_images(path: Path, images: Shaped[np.ndarray, "..."], may_be_one: bool) -> None:
    """Raises UserError if the array is not a batch of images.

    may_be_one: whether three axes may be the height, width and channels of one picture. In IDX files they never are.
    """
    allowed = "images are uint8 [N, H, W] or [N, H, W, 1, 3 or 4]"
    found = f"{images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))):
        order = "; transpose(0, 2, 3, 1) puts the channels last" if images.shape[1:2] in ((1,), (3,), (4,)) else ""
        raise UserError(f"{path}: found {found}, but {allowed}{order}")
    if 0 in images.shape[1:]:
        raise UserError(f"{path}: images of shape {list(images.shape[1:])} have no pixels")
    if may_be_one and images.ndim == 3 and _looks_like_one(*images.shape):
        raise UserError(f"{path}: found {found}, which looks like one picture; {allowed}: add the axis that is missing")


def _looks_like_one(first: int, second: int, third: int) -> bool:
    """Whether the lengths of three axes suggest one picture: height, width and channels, or channels first."""
    return first == 3 or (third in (1, 3, 4) and second != third)
