"""Each split decoded once: a uint8 array [N, H, W, C] mapped into memory, and a manifest of what it holds."""

import array
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from core import files
from core.errors import UserError
from images.pixels import to_pixels

VERSION = 1  # of what decoding does; another number decodes everything anew
NO_LABEL = -1
CHUNK = 64  # pictures that a thread decodes at a time


class Split(NamedTuple):
    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int [N], where the data set has them


class Pictures(NamedTuple):
    """A split that is still to be decoded."""

    names: Sequence[str | int]  # of files, else numbers
    open: Callable[[int], tuple[Image.Image, int]]  # picture and label (or NO_LABEL) i; any exception: i is unusable


class Source(NamedTuple):
    """Where a split comes from."""

    name: str  # for people
    identity: Mapping[str, Any]  # JSON; a source that gives other pictures has another
    read: Callable[[], Pictures]  # slow where the identity is not


class Form(NamedTuple):
    """What every picture becomes."""

    shape: tuple[int, int, int]
    crop: int = 0  # see to_pixels


def open_split(source: Source, split: str, form: Form, folder: Path, skip_bad: bool) -> Split:
    """The decoded split in `folder`, mapped into memory; it is decoded there first, where it is missing.

    Another source or form makes another array. Raises UserError where no picture can be used, and where some cannot
    unless skip_bad.
    """
    question = {"source": source.identity, "split": split, "form": form._asdict(), "version": VERSION}
    home = folder / f"{split}-{fingerprint(question)}"
    if not home.exists():
        with _alone(folder / "lock"):
            if not home.exists():  # else another process was faster
                _decode(source, split, form, home, question)
    manifest = files.read_json(home / "manifest.json")
    _check_skipped(manifest, home, skip_bad)
    try:
        images = np.load(home / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(home / "labels.npy", allow_pickle=False) if manifest["labelled"] else None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{home}: damaged ({error}); delete this folder and it is decoded again") from error
    return Split(images, labels)


def fingerprint(question: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]


def _check_skipped(manifest: Mapping[str, Any], home: Path, skip_bad: bool) -> None:
    if manifest["skipped"] and not skip_bad:
        raise UserError(
            f"{_skipped(manifest)}; {home / 'manifest.json'} lists all (delete the folder to try again), and "
            "--config.data.skip_bad=true does without them"
        )
    if manifest["skipped"]:
        print(f"{_skipped(manifest)}; data.skip_bad leaves them out")


def _skipped(manifest: Mapping[str, Any]) -> str:
    skipped, total = manifest["skipped"], manifest["count"] + len(manifest["skipped"])
    name, reason = skipped[0]
    return f"{manifest['name']}: {len(skipped)} of {total} pictures cannot be used, the first is {name!r}: {reason}"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of one that dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process decodes into {lock.parent}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _decode(source: Source, split: str, form: Form, home: Path, question: Mapping[str, Any]) -> None:
    pictures = source.read()
    if not pictures.names:
        raise UserError(f"{source.name}: the {split} split holds no images")
    with files.making_folder(home) as folder:
        with (folder / "images.npy").open("wb") as file:
            facts, labels = _write_images(pictures, split, form, file)
        if labels is not None:
            np.save(folder / "labels.npy", labels)
        manifest = {"name": source.name, **facts, "labelled": labels is not None, **question}
        if manifest["count"] == 0:
            raise UserError(_skipped(manifest))
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_images(
    pictures: Pictures, split: str, form: Form, file: BinaryIO
) -> tuple[Mapping[str, Any], np.ndarray | None]:
    """Writes a .npy of all that can be decoded; returns what it and what was skipped are, and the labels if any."""
    results = tqdm(_decoded(pictures, form), f"decode {split}", len(pictures.names), unit="image")
    labels, skipped, digest = array.array("q"), [], hashlib.sha256()
    _write_header(file, (len(pictures.names), *form.shape))
    for name, result in zip(pictures.names, results, strict=True):
        if isinstance(result, str):
            skipped.append((name, result))
            continue
        pixels, label = result
        file.write(pixels)
        digest.update(pixels)
        labels.append(label)
    file.seek(0)
    _write_header(file, (len(labels), *form.shape))  # as long as the first, whatever the count
    facts = {"count": len(labels), "sha256": digest.hexdigest(), "skipped": skipped}
    return facts, None if NO_LABEL in labels else np.array(labels)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _decoded(pictures: Pictures, form: Form) -> Iterator[tuple[np.ndarray, int] | str]:
    """In order, by threads (Pillow works outside the interpreter's lock): pixels and label, or why there are none."""
    import grain  # takes a quarter of a second, and a split is decoded but once

    def decode(i: int) -> tuple[np.ndarray, int] | str:
        try:
            picture, label = pictures.open(i)
            with picture:
                return np.ascontiguousarray(to_pixels(picture, *form)), label
        except Exception as error:  # Pillow raises many kinds at broken files
            return " ".join(str(error).split()) or type(error).__name__

    total, threads = len(pictures.names), os.cpu_count()
    chunks = grain.MapDataset.range(0, total, CHUNK).map(
        lambda start: [decode(i) for i in range(start, min(start + CHUNK, total))]
    )
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return itertools.chain.from_iterable(chunks.to_iter_dataset(ahead))
