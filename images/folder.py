"""A folder of pictures: what lies in it, whatever its depth, and of which class."""

import os
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
UNREAD = (".avif", ".bmp", ".gif", ".heic", ".tif", ".tiff")  # pictures that must not be passed over in silence


class Entry(NamedTuple):
    name: str  # from the folder on
    stamp: str = ""  # changes with the file
    trouble: str = ""  # why it cannot be read, where that shows already


def scan(root: Path) -> tuple[list[Entry], Counter[str]]:
    """All pictures under `root`, by name, and how many other files there are of each ending.

    Links are followed, but not back to a folder that they lie in. Names that begin with a dot are left alone.
    """
    entries, others, pending = [], Counter(), [(str(root), frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            here, items = above | {_identity(os.stat(folder))}, list(os.scandir(folder))
        except OSError as error:
            entries.append(Entry(os.path.relpath(folder, root), trouble=error.strerror))
            continue
        for item in items:
            if item.name.startswith("."):
                continue
            name, ending = item.path[len(str(root)) + 1 :], os.path.splitext(item.name)[1].lower()
            trouble, status = _look(item, here)
            if trouble:
                entries.append(Entry(name, trouble=trouble))
            elif stat.S_ISDIR(status.st_mode):
                pending.append((item.path, here))
            elif ending in ENDINGS:
                entries.append(Entry(name, f"{status.st_size} {status.st_mtime_ns}"))
            elif ending in UNREAD:
                entries.append(Entry(name, trouble=f"{ending} is not read, only PNG, JPEG and WebP are"))
            else:
                others[ending] += 1
    return sorted(entries), others


def _look(item: os.DirEntry, above: frozenset) -> tuple[str, os.stat_result | None]:
    """What is wrong with a file or folder, if anything, and its status."""
    try:
        status = item.stat()
    except OSError as error:  # a link to nothing or to itself
        return error.strerror, None
    if stat.S_ISDIR(status.st_mode):
        return "a link to a folder that it lies in" if _identity(status) in above else "", status
    return "" if stat.S_ISREG(status.st_mode) else "not a regular file", status


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def classes_of(entries: list[Entry]) -> list[str]:
    """The names of the topmost folders, where there are two or more and every picture lies in one; else nothing."""
    parts = [entry.name.split("/", 1) for entry in entries if not entry.trouble]
    names = sorted({part[0] for part in parts})
    return names if len(names) > 1 and all(len(part) == 2 for part in parts) else []
