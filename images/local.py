"""The user's own images: a folder of pictures, one array file, or IDX files; a share of them is the test split."""

import hashlib
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import UserError
from images import arrays
from images.decoded import NO_LABEL, Pictures, Source
from images.folder import Entry, classes_of, scan
from images.pixels import open_picture

KINDS = (
    "a folder of PNG, JPEG or WebP pictures, a .npy or .npz of uint8, or IDX files (Debian's package "
    "dataset-fashion-mnist installs some)"
)


def source(path: Path, split: str, held_out: float) -> Source:
    """The 'train' or 'test' split of the images at `path`, which must exist.

    IDX files have their own test split. Of all other images, a share `held_out` is the test split.

    Raises UserError if there are no images, or if `path` is of an unknown kind. A file is read later, by `Source.read`.
    """
    if path.is_dir() and any(arrays.idx_pair(path, name)[0] for name in arrays.IDX_NAMES):
        return _idx_source(path, split)
    if split == "test" and held_out == 0:
        raise UserError(f"{path} has no test split: data.held_out=0 keeps every image for training")
    if path.is_dir():
        return _folder_source(path, split, held_out)
    if path.suffix not in (".npy", ".npz") and arrays.IDX_IMAGES not in path.name:
        raise UserError(f"{path}: unsupported file type; data.path must be {KINDS}")
    return _array_source(path, split, held_out)


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the test split.

    It depends only on the image's name, so adding images moves no other image to the other split.
    """
    composed = unicodedata.normalize("NFC", name)  # some file systems store accents as separate characters
    digest = hashlib.blake2b(os.fsencode(composed), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _folder_source(root: Path, split: str, held_out: float) -> Source:
    """Unreadable entries are reported in both splits; their contents are unknown."""
    entries, others = scan(root)
    name = f"{root}{_ignored(others)}"
    if not entries:
        raise UserError(f"{root}: no PNG, JPEG or WebP pictures{_ignored(others)}")
    classes = classes_of(entries)
    chosen = [entry for entry in entries if entry.trouble or is_held_out(entry.name, held_out) == (split == "test")]
    identity = {"folder": str(root.resolve()), "classes": classes, "files": _entries_sha256(chosen)}
    labels = {class_name: label for label, class_name in enumerate(classes)}

    def open_one(i: int) -> tuple[Image.Image, int]:
        entry = chosen[i]
        if entry.trouble:
            raise ValueError(entry.trouble)
        label = labels.get(entry.name.split("/")[0], NO_LABEL)
        return open_picture(root / entry.name), label

    return Source(name, identity, lambda: Pictures([entry.name for entry in chosen], open_one))


def _ignored(others: Counter[str]) -> str:
    """The number of ignored files by ending, in parentheses; empty if there are none."""
    counts = [f"{count} of *{ending}" for ending, count in sorted(others.items())]
    return f" (ignored: {', '.join(counts)})" if counts else ""


def _entries_sha256(entries: list[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(os.fsencode("\0".join(entry) + "\0"))
    return digest.hexdigest()


def _array_source(path: Path, split: str, held_out: float) -> Source:
    """The images of one array file; the index of an image takes the place of its name."""

    def read() -> Pictures:
        images, labels = arrays.read_array(path)
        is_test = np.array([is_held_out(str(i), held_out) for i in range(len(images))], bool)
        return arrays.pictures(images, labels, np.flatnonzero(is_test == (split == "test")))

    return Source(str(path), {"files": [_stamp(path)], "held_out": held_out}, read)


def _idx_source(folder: Path, split: str) -> Source:
    def read() -> Pictures:
        images, labels = arrays.read_idx_pair(folder, split)
        return arrays.pictures(images, labels, np.arange(len(images)))

    paths = [path for path in arrays.idx_pair(folder, split) if path]
    return Source(str(folder), {"files": [_stamp(path) for path in paths]}, read)


def _stamp(path: Path) -> tuple[str, int, int]:
    """Path, size in bytes and modification time of a file."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
