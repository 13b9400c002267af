"""Images of the user's own: a folder of pictures, one array, or IDX files; part of them is held out."""

import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import UserError
from images import arrays
from images.decoded import NO_LABEL, Pictures, Source
from images.folder import classes_of, scan
from images.pixels import open_picture

KINDS = (
    "a folder of PNG, JPEG or WebP pictures, a .npy or .npz of uint8, or IDX files (Debian's package "
    "dataset-fashion-mnist installs some)"
)


def source(path: Path, split: str, held_out: float) -> Source:
    """A split of what lies at `path`, which exists.

    IDX files bring their own splits; of everything else a share `held_out` is the test split. Raises UserError where
    there is nothing to read.
    """
    if path.is_dir() and any(arrays.idx_pair(path, name)[0] for name in arrays.IDX_NAMES):
        return _idx_source(path, split)
    if split == "test" and held_out == 0:
        raise UserError(f"{path} has no test split: data.held_out=0 keeps every image for training")
    if path.is_dir():
        return _folder_source(path, split, held_out)
    if path.suffix not in (".npy", ".npz") and arrays.IDX_IMAGES not in path.name:
        raise UserError(f"{path}: not a kind that is read; data.path is {KINDS}")
    return _array_source(path, split, held_out)


def is_held_out(name: str, share: float) -> bool:
    """Whether an image is of the test split: a function of its name alone, so other images change nothing."""
    composed = unicodedata.normalize("NFC", name)  # the same name on file systems that take accents apart
    digest = hashlib.blake2b(os.fsencode(composed), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _folder_source(root: Path, split: str, held_out: float) -> Source:
    """Files in trouble count in both splits: what a link or a folder that cannot be read would give is not known."""
    entries, others = scan(root)
    ignored = (
        f" (left alone: {', '.join(f'{n} of *{ending}' for ending, n in sorted(others.items()))})" if others else ""
    )
    if not entries:
        raise UserError(f"{root}: no PNG, JPEG or WebP pictures{ignored}")
    classes = classes_of(entries)
    chosen = [entry for entry in entries if entry.trouble or is_held_out(entry.name, held_out) == (split == "test")]
    digest = hashlib.sha256()
    for entry in chosen:
        digest.update(os.fsencode("\0".join(entry) + "\0"))

    def open_one(i: int) -> tuple[Image.Image, int]:
        entry = chosen[i]
        if entry.trouble:
            raise ValueError(entry.trouble)
        return open_picture(root / entry.name), labels.get(entry.name.split("/")[0], NO_LABEL)

    labels = {name: i for i, name in enumerate(classes)}
    identity = {"folder": str(root.resolve()), "classes": classes, "files": digest.hexdigest()}
    return Source(f"{root}{ignored}", identity, lambda: Pictures([entry.name for entry in chosen], open_one))


def _array_source(path: Path, split: str, held_out: float) -> Source:
    """Images without a name are held out by their number."""

    def read() -> Pictures:
        images, labels = arrays.read_array(path)
        test = np.array([is_held_out(str(i), held_out) for i in range(len(images))], bool)
        return arrays.pictures(images, labels, np.flatnonzero(test == (split == "test")))

    return Source(str(path), {"files": [_stamp(path)], "held_out": held_out}, read)


def _idx_source(folder: Path, split: str) -> Source:
    def read() -> Pictures:
        images, labels = arrays.read_idx_pair(folder, split)
        return arrays.pictures(images, labels, np.arange(len(images)))

    paths = [path for path in arrays.idx_pair(folder, split) if path]
    return Source(str(folder), {"files": [_stamp(path) for path in paths]}, read)


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
