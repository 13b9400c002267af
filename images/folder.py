"""A folder of images: which files it contains, at any depth, and the split and the class of each picture."""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from images.content import kind_of

HIDDEN = {  # what operating systems leave in folders, besides names that start with a dot
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir", "#recycle"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
MOST_TROUBLES = 8  # that a message lists

FileId = tuple[int, int]
"""Device and inode number."""


class Entry(NamedTuple):
    """A file or folder.

    Attributes:
      name: path relative to the scanned folder.
      stamp: size and modification time of a picture or an IDX file; else empty.
      trouble: why it is not read, if `scan` can tell; else empty.
    """

    name: str
    stamp: str = ""
    trouble: str = ""


class Listing(NamedTuple):
    """What a folder contains; each list is sorted by name.

    Attributes:
      pictures: the pictures, and whatever might be one and cannot be read (with `trouble`).
      idx: the IDX files.
      others: all that is no image, with the reason as `trouble`: hidden, an empty folder, or the ending of the file.
    """

    pictures: list[Entry]
    idx: list[Entry]
    others: list[Entry]


def scan(root: Path) -> Listing:
    """All files under `root`. Each is in one of the lists, except those in hidden folders, which are not entered.

    Links are followed, except links to a folder that contains them. Files with a picture's ending are not opened; of
    others the first bytes are read. Unreadable folders and files and broken links are entries with `trouble`.
    """
    found: dict[str, list[Entry]] = {"pictures": [], "idx": [], "others": []}
    pending: list[tuple[str, frozenset[FileId]]] = [("", frozenset())]  # folders, each with those above it
    while pending:
        folder, above = pending.pop()
        try:
            ancestors = above | {_file_id(os.stat(root / folder))}
            items = list(os.scandir(root / folder))
        except OSError as error:
            found["pictures"].append(Entry(folder or ".", trouble=error.strerror))
            continue
        if folder and not items:
            found["others"].append(Entry(folder, trouble="empty"))
        for item in items:
            name = f"{folder}/{item.name}" if folder else item.name
            kind, stamp, trouble = _inspect(item, ancestors)
            if kind == "folder":
                pending.append((name, ancestors))
            else:
                found[kind].append(Entry(name, stamp, trouble))
    return Listing(**{kind: sorted(entries) for kind, entries in found.items()})


def _inspect(item: os.DirEntry, ancestors: frozenset[FileId]) -> tuple[str, str, str]:
    """'folder' or the list of `Listing` to which an item belongs; the stamp and the trouble of its entry."""
    if item.name.startswith(".") or item.name.lower() in HIDDEN:
        return "others", "", "hidden"
    try:
        status = item.stat()
        if stat.S_ISDIR(status.st_mode):
            is_loop = _file_id(status) in ancestors
            return ("pictures", "", "a link to a folder that contains it") if is_loop else ("folder", "", "")
        if not stat.S_ISREG(status.st_mode):
            return "pictures", "", "not a regular file"
        kind = kind_of(Path(item.path))
    except OSError as error:  # a link to nothing or to itself, or no permission
        return "pictures", "", error.strerror
    if kind in ("picture", "idx"):
        return {"picture": "pictures", "idx": "idx"}[kind], f"{status.st_size} {status.st_mtime_ns}", ""
    ending = repr(os.path.splitext(item.name)[1].lower())[1:-1]  # without line breaks
    return "others", "", f"*{ending}" if ending else "without an ending"


def _file_id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def summary(entries: Sequence[Entry]) -> str:
    """The number of entries for each of the commonest troubles, with the name of the first, in one line."""
    first = {entry.trouble: entry.name for entry in reversed(entries)}
    common = dict(Counter(entry.trouble for entry in entries).most_common(MOST_TROUBLES))
    parts = [f"{common[trouble]} {trouble} ({first[trouble]!r})" for trouble in sorted(common)]
    rest = len(entries) - sum(common.values())
    return ", ".join([*parts, f"{rest} others"] if rest else parts)


class Arrangement(NamedTuple):
    """What the folders of pictures mean; the first two lists have one value for each picture.

    Attributes:
      splits: 'train', 'validation' or 'test'; '' for a picture outside the folders of splits.
      classes: the name of its class; it is a class of the data set only if it is in `names`.
      names: the sorted names of the classes; empty if the folders are not classes.
    """

    splits: list[str]
    classes: list[str]
    names: list[str]


def arrange(entries: Sequence[Entry]) -> Arrangement:
    """The split and the class of each picture, by the folders that it is in.

    Folders are splits if a training folder lies beside one of another split, or if every picture is in the folder of a
    split. Case does not matter. If whole names do not show this, a word in the name of every picture's folder may
    (train2017, val2017).

    Folders are classes if there are two or more, with no training picture outside them. Without splits, these are the
    top folders; with splits, the top folders within the training split.
    """
    folders = [entry.name.rpartition("/")[0] for entry in entries]
    placed = _by_split(set(folders), whole=True) or _by_split(set(folders), whole=False)
    has_splits = bool(placed)
    placed = placed or {folder: ("", folder) for folder in folders}

    training = "train" if has_splits else ""
    usable = {folder for folder, entry in zip(folders, entries, strict=True) if not entry.trouble}
    known = [folder for folder in usable if placed[folder][0] == training]
    shared = os.path.commonpath([placed[folder][1] for folder in known]) if has_splits and known else ""
    tops = {folder: f"{inner}/".removeprefix(f"{shared}/").split("/")[0] for folder, (_, inner) in placed.items()}
    names = sorted({tops[folder] for folder in known})
    are_classes = len(names) > 1 and "" not in names
    splits = [placed[folder][0] for folder in folders]
    return Arrangement(splits, [tops[folder] for folder in folders], names if are_classes else [])


def _by_split(folders: Collection[str], *, whole: bool) -> dict[str, tuple[str, str]]:
    """The split of each folder, and its path without the part that tells it; empty if the folders are not splits.

    whole: whether the whole name of a folder must be that of a split, and not one word of it.
    """
    placed = {folder: _without_split(folder, whole) for folder in folders}
    kinds = {split for split, _ in placed.values()}
    has_several = len(kinds - {""}) > 1
    if has_several and "" not in kinds:
        is_layout = True
    else:
        is_layout = whole and (kinds == {"train"} or (has_several and "train" in kinds))
    return placed if is_layout else {}


def _without_split(folder: str, whole: bool) -> tuple[str, str]:
    parts = folder.split("/")
    for i, part in enumerate(parts):
        split = SPLITS.get(part.lower(), "") if whole else split_in(part)
        if split:
            return split, "/".join(parts[:i] + parts[i + 1 :])
    return "", folder


def split_in(name: str) -> str:
    """The split that the first fitting word of a name tells; '' if none does."""
    words = re.findall("t10k|[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")
