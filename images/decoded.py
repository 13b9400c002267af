"""Cache of decoded splits: each split is decoded once, into a memory-mapped uint8 array with a manifest (JSON)."""

import array
import hashlib
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from tqdm import tqdm

from core import files
from core.errors import UserError
from core.shapes import HostImages, ImageShape
from images.pixels import one_line, to_pixels

VERSION = 2  # version of the decoder; if it is incremented, all splits are decoded again
NO_LABEL = -1
CHUNK = 64  # pictures that a thread decodes at a time
MOST_REASONS = 4  # reasons that a message lists


class Split(NamedTuple):
    """Decoded images, or latents, and their labels; the labels are None if the data set has none."""

    images: HostImages
    labels: Integer[np.ndarray, "batch"] | None


class Pictures(NamedTuple):
    """The pictures of a split before decoding.

    Attributes:
      names: file names, or numbers if the pictures are not files.
      open: maps i to picture i and its label (or NO_LABEL). If it raises an exception, the picture cannot be used.
    """

    names: Sequence[str | int]
    open: Callable[[int], tuple[Image.Image, int]]


class Source(NamedTuple):
    """Where a split comes from.

    Attributes:
      name: the name in messages.
      identity: JSON values that change whenever the pictures may have changed; must be fast to compute.
      read: returns the pictures; may be slow.
      note: one line about files that are not read, for the user; empty if there are none.
    """

    name: str
    identity: Mapping[str, Any]
    read: Callable[[], Pictures]
    note: str = ""


Decoded = tuple[UInt8[np.ndarray, "height width channels"], int] | str
"""Pixels and label of a picture, or the reason why it cannot be used."""


class Form(NamedTuple):
    """The shape of the decoded pictures, and the side of the centre crop that is taken first (see `to_pixels`)."""

    shape: ImageShape
    crop: int = 0


def open_split(source: Source, split: str, form: Form, folder: Path, skip_bad: bool) -> Split:
    """The decoded split, mapped into memory from a subfolder of `folder`. If there is no such subfolder, decodes first.

    The subfolder's name contains a hash of source, split and form. Only one process decodes; others wait for it. The
    note of the source is printed.

    Raises UserError if no picture can be used, if some cannot be used and `skip_bad` is false, or if the decoded files
    are damaged.
    """
    if source.note:
        print(source.note)
    key = {"source": source.identity, "split": split, "form": form._asdict(), "version": VERSION}
    target = folder / f"{split}-{fingerprint(key)}"
    if not target.exists():
        busy_message = f"another process decodes into {folder}: waiting for it"
        with files.locking(folder / "lock", busy_message, wait=True):
            if not target.exists():  # another process may have finished while this one waited
                _decode(source, split, form, target=target, key=key)
    manifest = files.read_json(target / "manifest.json")
    _check_skipped(manifest, target, skip_bad)
    try:
        images = np.load(target / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(target / "labels.npy", allow_pickle=False) if manifest["labelled"] else None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{target}: damaged ({error}); delete this folder to decode it again") from error
    return Split(images, labels)


def fingerprint(key: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `key` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def unusable(name: str | Path, skipped: Sequence[Sequence[str | int]], total: int) -> str:
    """One line that says how many of the `total` pictures of a source cannot be used.

    skipped: (picture, reason) pairs. The line lists the commonest reasons, each with the first picture that has it.
    """
    first = {reason: picture for picture, reason in reversed(skipped)}
    common = Counter(reason for _, reason in skipped).most_common(MOST_REASONS)
    parts = [f"{first[reason]!r}: {reason}" + (f" ({n} of this kind)" if n > 1 else "") for reason, n in common]
    rest = len(skipped) - sum(n for _, n in common)
    if rest:
        parts.append(f"{rest} for other reasons")
    return f"{name}: {len(skipped)} of {total} pictures cannot be used, the first is {'; '.join(parts)}"


def _check_skipped(manifest: Mapping[str, Any], target: Path, skip_bad: bool) -> None:
    if manifest["skipped"] and not skip_bad:
        raise UserError(
            f"{_skipped(manifest)}; {target / 'manifest.json'} lists all (delete the folder to try again), and "
            "--config.data.skip_bad=true omits them"
        )
    if manifest["skipped"]:
        print(f"{_skipped(manifest)}; data.skip_bad=true omits them")


def _skipped(manifest: Mapping[str, Any]) -> str:
    return unusable(manifest["name"], manifest["skipped"], manifest["count"] + len(manifest["skipped"]))


def _decode(source: Source, split: str, form: Form, *, target: Path, key: Mapping[str, Any]) -> None:
    pictures = source.read()
    if not pictures.names:
        raise UserError(f"{source.name}: the {split} split holds no images")
    with files.making_folder(target) as folder:
        with (folder / "images.npy").open("wb") as file:
            facts, labels = _write_images(pictures, split, form, file)
        if labels is not None:
            np.save(folder / "labels.npy", labels)
        manifest = {"name": source.name, **facts, "labelled": labels is not None, **key}
        if manifest["count"] == 0:
            raise UserError(_skipped(manifest))
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_images(
    pictures: Pictures, split: str, form: Form, file: io.BufferedWriter
) -> tuple[dict[str, Any], Integer[np.ndarray, "batch"] | None]:
    """Writes the decoded pictures as .npy. Returns their count, SHA-256 and skipped pictures; and the labels."""
    decoded = decode(pictures, lambda picture: to_pixels(picture, form.shape, form.crop))
    results = tqdm(decoded, f"decode {split}", len(pictures.names), unit="image")
    labels = array.array("q")
    skipped: list[tuple[str | int, str]] = []
    digest = hashlib.sha256()
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
    _write_header(file, (len(labels), *form.shape))  # headers have the same length for every count
    facts = {"count": len(labels), "sha256": digest.hexdigest(), "skipped": skipped}
    return facts, None if NO_LABEL in labels else np.array(labels, np.int64)


def _write_header(file: io.BufferedWriter, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def decode(
    pictures: Pictures, convert: Callable[[Image.Image], UInt8[np.ndarray, "height width channels"]]
) -> Iterator[Decoded]:
    """Yields for each picture, in order, the result of `convert` and the label, or the reason why it cannot be used.

    Pictures are decoded by threads, because Pillow releases Python's global interpreter lock.
    """
    import grain  # takes 0.25 s to import, and is needed only once per split

    def decode_one(i: int) -> Decoded:
        try:
            picture, label = pictures.open(i)
            with picture:
                return np.ascontiguousarray(convert(picture)), label
        except Exception as error:  # Pillow raises many types of exceptions for damaged files
            return one_line(error)

    total = len(pictures.names)
    threads = os.cpu_count()
    chunks = grain.MapDataset.range(0, total, CHUNK).map(
        lambda start: [decode_one(i) for i in range(start, min(start + CHUNK, total))]
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return itertools.chain.from_iterable(chunks.to_iter_dataset(options))
