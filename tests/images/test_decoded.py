import hashlib
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from core import files
from core.errors import UserError
from images import decoded
from images.decoded import NO_LABEL, Form, Pictures, Source, open_split

FORM = Form((4, 4, 1))


def levels(count, trouble=None, label=lambda i: i % 7):
    """Returns a source of uniform pictures, where picture i has grey level i. trouble(i) may raise an exception."""

    def open_one(i):
        if trouble:
            trouble(i)
        return Image.new("L", (4, 4), i % 256), label(i)

    return Source("levels", {"count": count}, lambda: Pictures(range(count), open_one))


def never():
    raise AssertionError("the source was read again")


def test_array_and_manifest_agree(tmp_path):
    """Catches an order that depends on threads, a lost last chunk, and a manifest of another array."""
    count = 3 * decoded.CHUNK + 5
    split = open_split(
        levels(count, lambda i: time.sleep(0.002 if i % 3 == 0 else 0)),
        "train",
        form=FORM,
        folder=tmp_path,
        skip_bad=False,
    )
    assert isinstance(split.images, np.memmap) and split.images.dtype == np.uint8
    np.testing.assert_array_equal(
        split.images, np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros(FORM.shape, np.uint8)
    )
    np.testing.assert_array_equal(split.labels, np.arange(count) % 7)
    [folder] = tmp_path.glob("train-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["name"] == "levels" and manifest["count"] == count and manifest["skipped"] == []
    assert manifest["source"] == {"count": count} and manifest["form"] == {"shape": [4, 4, 1], "crop": 0}
    assert manifest["sha256"] == hashlib.sha256(split.images.tobytes()).hexdigest()


def test_second_opening_reads_nothing(tmp_path):
    """Catches a split that is decoded again in every run."""
    first = open_split(levels(5), "train", form=FORM, folder=tmp_path, skip_bad=False)
    again = open_split(levels(5)._replace(read=never), "train", form=FORM, folder=tmp_path, skip_bad=False)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)


def test_every_setting_has_its_own_array(tmp_path):
    """Catches a cached array that is used for another size, crop, split or source."""
    settings = [
        (levels(5), "train", FORM),
        (levels(6), "train", FORM),
        (levels(5), "test", FORM),
        (levels(5), "train", Form((2, 2, 1))),
        (levels(5), "train", Form((4, 4, 3))),
        (levels(5), "train", Form((4, 4, 1), crop=2)),
    ]
    for source, split, form in settings:
        open_split(source, split, form, folder=tmp_path, skip_bad=False)
    assert len(list(tmp_path.glob("t*-*"))) == len(settings)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupted_decoding_leaves_nothing(tmp_path, error):
    """Catches an incomplete array that the next run uses."""

    def stop(i):
        if i == 100:
            raise error

    with pytest.raises(error):
        open_split(levels(200, stop), "train", form=FORM, folder=tmp_path, skip_bad=False)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert len(open_split(levels(200), "train", form=FORM, folder=tmp_path, skip_bad=False).images) == 200


SLOW = """
import sys, time, pathlib
sys.path[:0] = ["."]
from tests.images.test_decoded import levels, open_split, FORM
print("started", flush=True)
open_split(levels(10**6, lambda i: time.sleep(0.01)), "train", FORM, pathlib.Path(sys.argv[1]), False)
"""


def test_next_run_cleans_up_after_a_killed_one(tmp_path):
    """Catches gigabytes that are never deleted, and a lock that is never released."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path], stdout=subprocess.PIPE, cwd=files.REPOSITORY)
    process.stdout.readline()
    while not (left := list(tmp_path.glob(".train-*.partial"))):
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    assert left[0].exists() and not list(tmp_path.glob("train-*"))
    assert (
        len(
            open_split(
                levels(10**6)._replace(read=levels(3).read), "train", form=FORM, folder=tmp_path, skip_bad=False
            ).images
        )
        == 3
    )
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["lock", "train-"]


def test_only_one_of_several_runs_decodes(tmp_path, capsys):
    """Catches a split that is decoded twice, and a folder that two runs write at the same time."""
    reads = []
    source = levels(300, lambda i: time.sleep(0.001))
    source = source._replace(read=lambda read=source.read: reads.append(1) or read())
    threads = [threading.Thread(target=open_split, args=(source, "train", FORM, tmp_path, False)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1 and "waiting" in capsys.readouterr().out


def test_labels_of_skipped_pictures_are_skipped(tmp_path):
    """Catches labels shifted by one after every skipped picture, and a second decoding that is not needed."""

    def trouble(i):
        if i % 3 == 1:
            raise ValueError(f"bad\n{i}")

    with pytest.raises(UserError, match="levels: 33 of 100 pictures cannot be used, the first is 1: bad 1"):
        open_split(levels(100, trouble), "train", form=FORM, folder=tmp_path, skip_bad=False)
    split = open_split(levels(100)._replace(read=never), "train", form=FORM, folder=tmp_path, skip_bad=True)
    kept = np.array([i for i in range(100) if i % 3 != 1])
    np.testing.assert_array_equal(split.images[:, 0, 0, 0], kept)
    np.testing.assert_array_equal(split.labels, kept % 7)


def test_labels_are_none_if_one_picture_has_none(tmp_path):
    """Catches the placeholder NO_LABEL used as a class."""
    source = levels(5, label=lambda i: NO_LABEL if i == 3 else 1)
    assert open_split(source, "train", form=FORM, folder=tmp_path, skip_bad=False).labels is None


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_damaged_array_is_an_error_of_one_line(tmp_path, name):
    """Catches a bus error in the middle of training, after the array was cut short by a full disk."""
    open_split(levels(5), "train", form=FORM, folder=tmp_path, skip_bad=False)
    [path] = tmp_path.glob(f"train-*/{name}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train-\w+") as error:
        open_split(levels(5), "train", form=FORM, folder=tmp_path, skip_bad=False)
    assert "\n" not in str(error.value)


MEASURE = """
import resource, sys, pathlib
sys.path[:0] = ["."]
import numpy as np
from PIL import Image
from images.decoded import Form, Pictures, Source, open_split
page = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
def decode(count):
    read = lambda: Pictures(range(count), lambda i: (Image.fromarray(np.roll(page, i)), i))
    open_split(Source("noise", {"count": count}, read), "train", Form((64, 64, 3)), pathlib.Path(sys.argv[1]), False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(decode(1000), decode(int(sys.argv[2])))
"""


def test_memory_does_not_grow_with_the_split(tmp_path):
    """Catches a split that is kept in memory during decoding: 245 MB here, 16 GB for ImageNet at 64x64."""
    command = [sys.executable, "-c", MEASURE, tmp_path, "20000"]
    result = subprocess.run(command, cwd=files.REPOSITORY, check=True, capture_output=True, text=True)
    few, many = map(int, result.stdout.split())
    assert many - few < 60
