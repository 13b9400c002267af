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
    """A source of pictures that are grey level i all over; trouble(i) may raise."""

    def open_one(i):
        if trouble:
            trouble(i)
        return Image.new("L", (4, 4), i % 256), label(i)

    return Source("levels", {"count": count}, lambda: Pictures(range(count), open_one))


def never():
    raise AssertionError("read again")


def test_array_and_manifest_say_the_same(tmp_path):
    """An order shuffled by threads, a chunk lost at the end, a manifest that describes something else."""
    count = 3 * decoded.CHUNK + 5
    split = open_split(levels(count, lambda i: time.sleep(0.002 * (i % 3 == 0))), "train", FORM, tmp_path, False)
    assert isinstance(split.images, np.memmap) and split.images.dtype == np.uint8
    np.testing.assert_array_equal(
        split.images, np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros(FORM.shape, np.uint8)
    )
    np.testing.assert_array_equal(split.labels, np.arange(count) % 7)
    [home] = tmp_path.glob("train-*")
    manifest = json.loads((home / "manifest.json").read_text())
    assert manifest["name"] == "levels" and manifest["count"] == count and manifest["skipped"] == []
    assert manifest["source"] == {"count": count} and manifest["form"] == {"shape": [4, 4, 1], "crop": 0}
    assert manifest["sha256"] == hashlib.sha256(split.images.tobytes()).hexdigest()


def test_second_opening_reads_nothing(tmp_path):
    first = open_split(levels(5), "train", FORM, tmp_path, False)
    again = open_split(levels(5)._replace(read=never), "train", FORM, tmp_path, False)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)


def test_another_question_gets_an_array_of_its_own(tmp_path):
    """Images of another size, crop, split or source taken for these."""
    questions = [(levels(5), "train", FORM)]
    questions += [(levels(6), "train", FORM), (levels(5), "test", FORM), (levels(5), "train", Form((2, 2, 1)))]
    questions += [(levels(5), "train", Form((4, 4, 3))), (levels(5), "train", Form((4, 4, 1), crop=2))]
    for source, split, form in questions:
        open_split(source, split, form, tmp_path, False)
    assert len(list(tmp_path.glob("t*-*"))) == len(questions)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupted_decoding_leaves_nothing(tmp_path, error):
    """Half an array that the next run takes for a whole one."""

    def stop(i):
        if i == 100:
            raise error

    with pytest.raises(error):
        open_split(levels(200, stop), "train", FORM, tmp_path, False)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert len(open_split(levels(200), "train", FORM, tmp_path, False).images) == 200


SLOW = """
import sys, time, pathlib
sys.path[:0] = ["."]
from tests.images.test_decoded import levels, open_split, FORM
print("started", flush=True)
open_split(levels(10**6, lambda i: time.sleep(0.01)), "train", FORM, pathlib.Path(sys.argv[1]), False)
"""


def test_killed_decoding_is_cleared_by_the_next(tmp_path):
    """Gigabytes left behind for ever, or a lock that is never let go."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path], stdout=subprocess.PIPE, cwd=files.REPOSITORY)
    process.stdout.readline()
    while not (left := list(tmp_path.glob(".train-*.partial"))):
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    assert left[0].exists() and not list(tmp_path.glob("train-*"))
    assert len(open_split(levels(10**6)._replace(read=levels(3).read), "train", FORM, tmp_path, False).images) == 3
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["lock", "train-"]


def test_of_two_processes_one_decodes(tmp_path, capsys):
    """The same work done twice, or one folder written by two."""
    reads, source = [], levels(300, lambda i: time.sleep(0.001))
    source = source._replace(read=lambda read=source.read: reads.append(1) or read())
    threads = [threading.Thread(target=open_split, args=(source, "train", FORM, tmp_path, False)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1 and "waiting" in capsys.readouterr().out


def test_skipped_pictures_take_their_labels_along(tmp_path):
    """Labels that shift by one behind every skipped picture; a second decoding where the first would do."""

    def trouble(i):
        if i % 3 == 1:
            raise ValueError(f"bad\n{i}")

    with pytest.raises(UserError, match="levels: 33 of 100 pictures cannot be used, the first is 1: bad 1"):
        open_split(levels(100, trouble), "train", FORM, tmp_path, False)
    split = open_split(levels(100)._replace(read=never), "train", FORM, tmp_path, True)
    kept = np.array([i for i in range(100) if i % 3 != 1])
    np.testing.assert_array_equal(split.images[:, 0, 0, 0], kept)
    np.testing.assert_array_equal(split.labels, kept % 7)


def test_labels_that_some_lack_are_none(tmp_path):
    source = levels(5, label=lambda i: NO_LABEL if i == 3 else 1)
    assert open_split(source, "train", FORM, tmp_path, False).labels is None


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_damaged_array_is_one_line(tmp_path, name):
    """A disk that was full, and a bus error in the middle of training."""
    open_split(levels(5), "train", FORM, tmp_path, False)
    [path] = tmp_path.glob(f"train-*/{name}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train-\w+") as error:
        open_split(levels(5), "train", FORM, tmp_path, False)
    assert "\n" not in str(error.value)


MEASURE = """
import resource, sys, pathlib
sys.path[:0] = ["."]
import numpy as np
from PIL import Image
from datasets.decoded import Form, Pictures, Source, open_split
page = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
def decode(count):
    read = lambda: Pictures(range(count), lambda i: (Image.fromarray(np.roll(page, i)), i))
    open_split(Source("noise", {"count": count}, read), "train", Form((64, 64, 3)), pathlib.Path(sys.argv[1]), False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(decode(1000), decode(int(sys.argv[2])))
"""


def test_memory_does_not_grow_with_the_split(tmp_path):
    """A split that is held in memory while it is decoded: 245 MB here, 16 GB for ImageNet at 64x64."""
    command = [sys.executable, "-c", MEASURE, tmp_path, "20000"]
    result = subprocess.run(command, cwd=files.REPOSITORY, check=True, capture_output=True, text=True)
    few, many = map(int, result.stdout.split())
    assert many - few < 60
