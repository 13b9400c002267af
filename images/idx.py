"""Reads IDX, the format of MNIST: one array in a file, and the files of each split in a folder."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from core.errors import UserError
from images.content import IDX, head
from images.folder import split_in

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}  # MNIST's names, for messages


class Pair(NamedTuple):
    """The files of a split; the labels may be missing."""

    images: Path
    labels: Path | None


def pairs(root: Path, names: Sequence[str]) -> dict[str, Pair]:
    """The files of each split ('train', 'validation' or 'test') that has images, among the IDX files below `root`.

    The split is given by a word in the name of the file. If the name has no such word, the nearest folder with such a
    word gives the split; if there is none, the split is 'train'. Names may have dots or dashes. If files of the same
    name are in several folders, as Kaggle and torchvision store them, the file nearest to the root is used. If this
    file exists both unpacked and gzipped, the unpacked one is used. Raises UserError if the nearest files have
    different names.
    """
    files: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        files.setdefault((_split_of(name), _is_images(root / name)), []).append(name)
    found = {key: root / _nearest(root, candidates) for key, candidates in files.items()}
    return {split: Pair(path, found.get((split, False))) for (split, is_images), path in found.items() if is_images}


def _split_of(name: str) -> str:
    return next(filter(None, map(split_in, reversed(name.split("/")))), "train")


def _is_images(path: Path) -> bool:
    """Whether the array has three or more axes. If the file is not IDX or cannot be read, the name decides."""
    try:
        start, _ = head(path)
    except OSError:
        start = b""
    return start[3] >= 3 if IDX.match(start) else "images" in path.name.lower()


def _nearest(root: Path, candidates: list[str]) -> str:
    depth = min(name.count("/") for name in candidates)
    nearest = sorted(name for name in candidates if name.count("/") == depth)
    if len({name.removesuffix(".gz").replace(".", "-") for name in nearest}) > 1:
        found = ", ".join(nearest)
        raise UserError(f"{root} holds IDX files of several data sets ({found}): name the folder of one of them")
    return nearest[0]


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of bytes, which may be gzipped.

    The format: two zero bytes, the type 8, the rank, the sizes as big-endian int32, then the values. Raises UserError
    if the file cannot be read, has another format or is incomplete.
    """
    try:
        _, gzipped = head(path)
        content = gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path}: not an IDX file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4).tolist()
    if len(content) - 4 - 4 * rank != math.prod(shape):
        raise UserError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}: it is cut or broken")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
