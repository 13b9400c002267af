"""Folders: which files are read, which are named in a message, and what the names of folders mean."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import UserError
from images.content import PICTURE_ENDINGS
from images.decoded import Form, open_split
from images.folder import Entry, arrange, scan, summary
from images.generated import open_images
from images.local import ALL, folder_source

SHAPE = (3, 3, 1)


@pytest.mark.parametrize(
    ("names", "splits", "classes"),
    [
        (["1.png"], [""], []),
        (["car/1", "train/1"], ["", ""], ["car", "train"]),
        (["car/1", "test/1"], ["", ""], ["car", "test"]),
        (["bullet_train/1", "steam_train/1"], ["", ""], ["bullet_train", "steam_train"]),
        (["test/1"], [""], []),
        (["train/1", "test/1"], ["train", "test"], []),
        (["TRAIN/1", "Valid/1"], ["train", "validation"], []),
        (["Training/a/1", "Training/b/1", "Testing/b/1"], ["train", "train", "test"], ["a", "b"]),
        (["train/a/1", "train/b/1"], ["train", "train"], ["a", "b"]),
        (["train/a/1", "train/b/1", "test/1"], ["train", "train", "test"], ["a", "b"]),
        (["train/a/1", "train/b/1", "val/1", "x/1", "2"], ["train", "train", "validation", "", ""], ["a", "b"]),
        (["x/train/a/1", "x/train/b/1", "x/test/1"], ["train", "train", "test"], ["a", "b"]),
        (["a/train/1", "b/train/1", "b/test/1"], ["train", "train", "test"], ["a", "b"]),
        (["train2017/1", "val2017/1"], ["train", "validation"], []),
        (["train2017/1", "val2017/1", "2"], ["", "", ""], []),
        (["validation/1", "test/1"], ["validation", "test"], []),
    ],
)
def test_meaning_of_folders(names, splits, classes):
    """Catches splits that become classes, a class called train that becomes a split, and labels of the wrong level."""
    found = arrange([Entry(name) for name in names])
    assert (found.splits, found.names) == (splits, classes)


def encoded(form):
    file = io.BytesIO()
    Image.new("L", SHAPE[:2], 99).save(file, form)
    return file.getvalue()


OUTSIDE = Path("outside.png")  # beside the root; links point to it
MAKE = {
    "png": lambda path: path.write_bytes(encoded("PNG")),
    "gif": lambda path: path.write_bytes(encoded("GIF")),
    "ppm": lambda path: path.write_bytes(encoded("PPM")),
    "link": lambda path: path.symlink_to(os.path.relpath(path.parents[3] / OUTSIDE, path.parent)),
    "text": lambda path: path.write_bytes(b"no picture"),
    "empty file": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(encoded("PNG")[:40]),
    "empty folder": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to("."),
    "pipe": os.mkfifo,
}
READABLE = {"png", "gif", "ppm", "link"}
FOLDERS = st.sampled_from(["a", "b.png", "train", "Test", ".hidden", "__MACOSX"])
FILES = st.sampled_from(["1.png", "2.JFIF", "3", "4.txt", "5.csv\n", "._1.png", "Thumbs.db", "6\n.png", "7.heic"])
TREES = st.dictionaries(st.tuples(FOLDERS, FOLDERS, FILES), st.sampled_from(sorted(MAKE)), max_size=12)


def is_hidden(name):
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db")


def expected(tree):
    """Returns the files that must be read and the names that must be reported. A hidden folder counts as one name."""
    read, named = set(), set()
    for parts, what in tree.items():
        hidden = [i for i, part in enumerate(parts) if is_hidden(part)]
        name = "/".join(parts[: hidden[0] + 1] if hidden else parts)
        (read if what in READABLE and not hidden else named).add(name)
    return read, named


@given(TREES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_that_is_there_is_read_or_named(tmp_path_factory, tree):
    """Catches files that are lost, counted twice, or read by training but not by scoring."""
    base = tmp_path_factory.mktemp("tree")
    root = base / "root"
    root.mkdir()
    MAKE["png"](base / OUTSIDE)
    for parts, what in tree.items():
        root.joinpath(*parts[:-1]).mkdir(parents=True, exist_ok=True)
        MAKE[what](root.joinpath(*parts))
    read, named = expected(tree)
    listing = scan(root)
    assert sorted(entry.name for entries in listing for entry in entries) == sorted(read | named)
    troubled = {entry.name for entry in listing.pictures if entry.trouble}
    unreadable = {name for name in named if name in {entry.name for entry in listing.pictures}}
    assert troubled <= unreadable
    if not listing.pictures:
        return
    source = folder_source(root, ALL)
    assert summary(listing.others) in source.note and "\n" not in source.note
    if read:
        training = open_split(source, "train", Form(SHAPE), base / "decoded", skip_bad=True)
        assert len(training.images) == len(read)
    if unreadable:
        with pytest.raises(UserError, match=f"{len(unreadable)} of {len(listing.pictures)} pictures cannot be used"):
            open_images(root, SHAPE)
    else:
        [(images, count)] = open_images(root, SHAPE).batches
        assert count == len(read) and (images == training.images).all()


def test_summary_is_one_short_line():
    """Catches a line that grows with the number of extensions, and a name with a line break in it."""
    entries = [Entry(f"a.{i}", trouble=f"*.{i}") for i in range(100)] + [Entry("b\n", trouble="hidden")] * 5
    assert summary(entries).startswith("1 *.0 ('a.0'), 1 *.1 ('a.1'), ")
    assert summary(entries).endswith(", 5 hidden ('b\\n'), 93 others")


def test_links_in_a_circle_end(tmp_path):
    """Catches a scan that never ends if two folders have links to each other."""
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(f"../{other}")
        (tmp_path / name / "1.png").write_bytes(encoded("PNG"))
    names = [entry.name for entry in scan(tmp_path).pictures if not entry.trouble]
    assert names == ["a/1.png", "a/link/1.png", "b/1.png", "b/link/1.png"]


def test_endings_of_pictures_are_not_opened(tmp_path, monkeypatch):
    """Catches a scan that opens a million pictures in every run."""
    for ending in PICTURE_ENDINGS:
        (tmp_path / f"a{ending.upper()}").touch()
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a picture is opened"))
    assert len(scan(tmp_path).pictures) == len(PICTURE_ENDINGS)
