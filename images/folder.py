"""Lists the files of a folder of images, at any depth, and determines the split and the class of each picture."""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from images.content import kind_of

HIDDEN = {  # names that operating systems create; names that start with a dot are hidden too
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir", "#recycle"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
MOST_TROUBLES = 8  # troubles that a message lists

FileId = tuple[int, int]
"""Device and inode number."""


class Entry(NamedTuple):
    """A file or folder.

    Attributes:
      name: the path relative to the scanned folder.
      stamp: the size and modification time of a picture or an IDX file; else empty.
      trouble: the reason why the file is not read, if `scan` knows one; else empty.
    """

    name: str
    stamp: str = ""
    trouble: str = ""


class Listing(NamedTuple):
    """What a folder contains; each list is sorted by name.

    Attributes:
      pictures: the pictures, and the unreadable entries that may be pictures (with `trouble`).
      idx: the IDX files.
      others: all entries that are not images. Their `trouble` is "hidden", "empty" (a folder), or the file extension.
    """

    pictures: list[Entry]
    idx: list[Entry]
    others: list[Entry]


def scan(root: Path) -> Listing:
    """Lists all files under `root`, except those in hidden folders.

    Links are followed, except links to a folder that contains them. Picture files, known by their extension, are not
    opened; of other files the first bytes are read. Unreadable folders, unreadable files and broken links are entries
    with `trouble`.
    """
    found: dict[str, list[Entry]] = {"pictures": [], "idx": [], "others": []}
    pending: list[tuple[str, frozenset[FileId]]] = [("", frozenset())]  # folders, each with its parent folders
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
    """(kind, stamp, trouble) of an item, where kind is 'folder' or the name of the list in `Listing`."""
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
    """One line with the number of entries for each of the commonest troubles, and the name of the first such entry."""
    first = {entry.trouble: entry.name for entry in reversed(entries)}
    common = dict(Counter(entry.trouble for entry in entries).most_common(MOST_TROUBLES))
    parts = [f"{common[trouble]} {trouble} ({first[trouble]!r})" for trouble in sorted(common)]
    rest = len(entries) - sum(common.values())
    return ", ".join([*parts, f"{rest} others"] if rest else parts)


class Arrangement(NamedTuple):
    """The splits and classes that follow from the folders of the pictures.

    Attributes:
      splits: for each picture, 'train', 'validation' or 'test'; '' if it is outside the folders of splits.
      classes: for each picture, the name of its folder; this is a class of the data set only if it is in `names`.
      names: the sorted names of the classes; empty if the folders are not classes.
    """

    splits: list[str]
    classes: list[str]
    names: list[str]


def arrange(entries: Sequence[Entry]) -> Arrangement:
    """Determines the split and the class of each picture from the folders that contain it.

    Folders are splits if there is a training folder and one of another split, or if every picture is in the folder of a
    split. Case does not matter. First the whole name of a folder must be the name of a split (SPLITS). If that finds no
    splits, one word of the name is enough (train2017, val2017), but then every picture must be in such a folder.

    Folders are classes if there are two or more of them and they contain all training pictures. Without splits, the
    classes are the top folders; with splits, they are the top folders within the training split.
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
    """The split of each folder, and its path without the name of the split; empty if the folders are not splits.

    whole: whether the whole name of a folder must be the name of a split. Otherwise one word of the name is enough.
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
    """The split named by the first word of `name` that is in SPLITS; '' if there is none."""
    words = re.findall("t10k|[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")
