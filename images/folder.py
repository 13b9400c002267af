"""A folder of pictures: which files it contains, at any depth, and the class of each."""

import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
UNREAD = (".avif", ".bmp", ".gif", ".heic", ".tif", ".tiff")  # formats that are reported, not silently skipped

FileId = tuple[int, int]
"""Device and inode number."""


class Entry(NamedTuple):
    """A picture, or a file or folder that cannot be read.

    Attributes:
      name: path relative to the scanned folder.
      stamp: size and modification time of the file; empty if it cannot be read.
      trouble: why it cannot be read, if `scan` can tell; else empty.
    """

    name: str
    stamp: str = ""
    trouble: str = ""


def scan(root: Path) -> tuple[list[Entry], Counter[str]]:
    """All pictures under `root`, sorted by name, and the number of other files by ending.

    Links are followed, except links to a folder that contains them. Hidden files and folders (names that start with a
    dot) are skipped. Nothing is opened. Unreadable folders, broken links and pictures of unsupported formats are
    returned as entries with `trouble`.
    """
    entries: list[Entry] = []
    others: Counter[str] = Counter()
    pending: list[tuple[str, frozenset[FileId]]] = [(str(root), frozenset())]  # folders, each with those above it
    while pending:
        folder, above = pending.pop()
        try:
            ancestors = above | {_file_id(os.stat(folder))}
            items = list(os.scandir(folder))
        except OSError as error:
            entries.append(Entry(os.path.relpath(folder, root), trouble=error.strerror))
            continue
        for item in items:
            if item.name.startswith("."):
                continue
            name = item.path[len(str(root)) + 1 :]
            ending = os.path.splitext(item.name)[1].lower()
            trouble, status = _status(item, ancestors)
            if trouble:
                entries.append(Entry(name, trouble=trouble))
            elif stat.S_ISDIR(status.st_mode):
                pending.append((item.path, ancestors))
            elif ending in ENDINGS:
                entries.append(Entry(name, stamp=f"{status.st_size} {status.st_mtime_ns}"))
            elif ending in UNREAD:
                entries.append(Entry(name, trouble=f"{ending} is not read, only PNG, JPEG and WebP are"))
            else:
                others[ending] += 1
    return sorted(entries), others


def _status(item: os.DirEntry, ancestors: frozenset[FileId]) -> tuple[str, os.stat_result | None]:
    """Why a file or folder cannot be read ("" if it can), and its status."""
    try:
        status = item.stat()
    except OSError as error:  # a link to nothing or to itself
        return error.strerror, None
    if stat.S_ISDIR(status.st_mode):
        trouble = "a link to a folder that contains it" if _file_id(status) in ancestors else ""
    else:
        trouble = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
    return trouble, status


def _file_id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def classes_of(entries: list[Entry]) -> list[str]:
    """The sorted names of the top-level folders, if they are classes: two or more, and no picture outside them.

    Returns an empty list otherwise.
    """
    parts = [entry.name.split("/", 1) for entry in entries if not entry.trouble]
    names = sorted({part[0] for part in parts})
    are_classes = len(names) > 1 and all(len(part) == 2 for part in parts)
    return names if are_classes else []
