"""Reads the user's own images (a folder or zip of pictures, an array file, or IDX files) and selects the test split."""

import functools
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import UserError
from images import arrays, content, idx, zipped
from images.decoded import NO_LABEL, Pictures, Source
from images.folder import Entry, Listing, arrange, scan, summary
from images.pixels import open_picture

KINDS = f"{content.KINDS} (Debian's package dataset-fashion-mnist installs some)"
ALL = "all"  # in place of a split: every image of a folder


def source(path: Path, split: str, held_out: float) -> Source:
    """The 'train' or 'test' split of the images at `path`, which must exist.

    IDX files have their own test split, and so have pictures in folders called train and test
    (`images.folder.arrange`). If there is a validation folder and no test folder, the validation pictures are the test
    split. In all other cases, the share `held_out` of the images is the test split.

    Raises UserError if there are no images, or if `path` is of an unknown kind. `Source.read` reads the files.
    """
    if path.is_dir():
        return folder_source(path, split, held_out)
    if path.suffix == ".zip":
        _require_share(path, split, held_out)
        return zip_source(path, split, held_out)
    arrays.require_array(path)
    _require_share(path, split, held_out)
    return _array_source(path, split, held_out)


def folder_source(root: Path, split: str, held_out: float = 0) -> Source:
    """The 'train' or 'test' split of the pictures or IDX files in a folder, or ALL of them; see `source`."""
    listing = scan(root)
    pairs = idx.pairs(root, [entry.name for entry in listing.idx])
    if not pairs:
        return _picture_source(root, listing, split, held_out)
    pictures = [entry.name for entry in listing.pictures if not entry.trouble]
    if pictures:
        found = f"IDX files ({listing.idx[0].name!r}) and {len(pictures)} pictures ({pictures[0]!r})"
        raise UserError(f"{root} holds {found}: name a folder with one kind")
    return _idx_source(root, listing, pairs, split)


def zip_source(path: Path, split: str, held_out: float = 0) -> Source:
    """Returns the source of the pictures in a zip file: the 'train' split, the 'test' split or, for ALL, both."""

    def read() -> Pictures:
        pictures = zipped.ZippedPictures(path)
        is_test = split == "test"
        chosen = [name for name in pictures.names if split == ALL or is_held_out(name, held_out) == is_test]
        return Pictures(chosen, lambda i: pictures.open(chosen[i]))

    return Source(str(path), {"files": [_stamp(path)], "held_out": held_out}, read)


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the test split.

    This depends only on the image's name, so adding images does not move other images between the splits.
    """
    composed = unicodedata.normalize("NFC", name)  # some file systems store accents as separate characters
    digest = hashlib.blake2b(os.fsencode(composed), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _require_share(path: Path, split: str, held_out: float) -> None:
    if split == "test" and held_out == 0:
        raise UserError(f"{path} has no test split: data.held_out=0 keeps every image for training")


def _test_name(splits: Collection[str]) -> str:
    """The split that is the test split: 'test', or else 'validation'; '' if there is neither."""
    return next((name for name in ("test", "validation") if name in splits), "")


def _picture_source(root: Path, listing: Listing, split: str, held_out: float) -> Source:
    entries = listing.pictures
    ignored = _ignored(listing.others + _because("IDX labels without images", listing.idx))
    if not entries:
        found = f" ({ignored})" if ignored else ""
        raise UserError(f"{root}: holds no images{found}; images are read from {content.KINDS}")
    arrangement = arrange(entries)
    chosen = _chosen(root, entries, arrangement.splits, split=split, held_out=held_out)
    files = [entries[i] for i in chosen]
    identity = {"folder": str(root.resolve()), "classes": arrangement.names, "files": _entries_sha256(files)}
    labels = {class_name: label for label, class_name in enumerate(arrangement.names)}

    def open_one(i: int) -> tuple[Image.Image, int]:
        if files[i].trouble:
            raise ValueError(files[i].trouble)
        return open_picture(root / files[i].name), labels.get(arrangement.classes[chosen[i]], NO_LABEL)

    note = _note(root, _usage(arrangement.splits, split), ignored)
    return Source(str(root), identity, lambda: Pictures([entry.name for entry in files], open_one), note)


def _chosen(root: Path, entries: list[Entry], splits: list[str], *, split: str, held_out: float) -> list[int]:
    """The indices of the entries of a split. Unreadable entries outside the split folders belong to every split."""
    if split == ALL:
        return list(range(len(entries)))
    test = _test_name(splits)
    if test:
        wanted = test if split == "test" else "train"
        return [i for i, found in enumerate(splits) if found == wanted or (entries[i].trouble and not found)]
    _require_share(root, split, held_out)
    is_test = split == "test"
    return [i for i, entry in enumerate(entries) if entry.trouble or is_held_out(entry.name, held_out) == is_test]


def _usage(splits: list[str], split: str) -> str:
    """A text with the number of pictures in the folders of each split, used or not; empty without split folders."""
    if not any(splits):
        return ""
    counts = Counter(splits)
    used = set(counts) if split == ALL else {"train", _test_name(splits)}
    parts = [f"{name or 'outside'} {counts[name]}{'' if name in used else ' (not used)'}" for name in sorted(counts)]
    return f"pictures in folders of splits: {', '.join(parts)}"


def _because(trouble: str, entries: list[Entry]) -> list[Entry]:
    return [entry._replace(trouble=trouble) for entry in entries]


def _ignored(entries: list[Entry]) -> str:
    return f"ignored: {summary(entries)}" if entries else ""


def _note(root: Path, *facts: str) -> str:
    """One line with all facts that are not empty; empty if there are none."""
    return f"{root}: {'; '.join(filter(None, facts))}" if any(facts) else ""


def _entries_sha256(entries: list[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(os.fsencode("\0".join(entry) + "\0"))
    return digest.hexdigest()


def _array_source(path: Path, split: str, held_out: float) -> Source:
    """A split of the images in one array file. `is_held_out` gets the index of an image as its name."""

    def read() -> Pictures:
        images, labels = arrays.read_array(path)
        is_test = np.array([is_held_out(str(i), held_out) for i in range(len(images))], bool)
        return arrays.pictures(images, labels, np.flatnonzero(is_test == (split == "test")))

    return Source(str(path), {"files": [_stamp(path)], "held_out": held_out}, read)


def _idx_source(root: Path, listing: Listing, pairs: dict[str, idx.Pair], split: str) -> Source:
    names = {"train": ["train"], "test": [_test_name(pairs)], ALL: sorted(pairs)}[split]
    chosen = [pairs[name] for name in names if name in pairs]

    def read() -> Pictures:
        if not chosen:
            raise UserError(f"no {idx.FILES[split]}[.gz] in {root}: the {split} split is missing")
        openers = []
        for pair in chosen:
            images, labels = arrays.read_pair(pair)
            part = arrays.pictures(images, labels, np.arange(len(images)))
            openers += [functools.partial(part.open, i) for i in range(len(images))]
        return Pictures(range(len(openers)), lambda i: openers[i]())

    paths = [path for pair in chosen for path in pair if path]
    read_names = {path.relative_to(root).as_posix() for pair in pairs.values() for path in pair if path}
    spare = _because("IDX (another one is read)", [entry for entry in listing.idx if entry.name not in read_names])
    note = _note(root, _ignored(listing.others + listing.pictures + spare))
    return Source(str(root), {"files": [_stamp(path) for path in paths]}, read, note)


def _stamp(path: Path) -> tuple[str, int, int]:
    """The path, the size in bytes and the modification time of a file."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
