"""MNIST's files, under all names and in all folders in which they are distributed."""

import gzip

import numpy as np
import pytest

from core.errors import UserError
from images.local import ALL, folder_source


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


IMAGES = idx_bytes(np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
LABELS = idx_bytes(np.array([7, 8, 9], np.uint8))
TEST = idx_bytes(np.zeros((2, 4, 4), np.uint8))
CONTENTS = (IMAGES, LABELS, TEST)
PACKED = tuple(map(gzip.compress, CONTENTS))
DASHES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")
DOTS = ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte")


def named(form, names, contents=CONTENTS):
    return dict(zip([form.format(name) for name in names], contents, strict=True))


LAYOUTS = {
    "dashes": named("{0}", DASHES),
    "dots": named("{0}", DOTS),
    "gzipped": named("{0}.gz", DASHES, PACKED),
    "gzipped without the ending": named("{0}", DOTS, PACKED),
    "unpacked with the ending": named("{0}.gz", DASHES),
    "torchvision": named("MNIST/raw/{0}", DASHES) | named("MNIST/raw/{0}.gz", DASHES, PACKED),
    "folders": named("{0}/{0}", DASHES),
    "Kaggle": named("{0}/{0}", DASHES, (b"", b"", b"")) | named("{0}", DOTS),
    "EMNIST": named("emnist-{0}", [name.replace("t10k", "test") for name in DASHES]),
    "other names": named("{0}.bin", ["Training/x", "Training/y", "Test/x"]),
    "validation": named("{0}", ["train-x", "train-y", "validation"]),
}


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def labels(root, split):
    pictures = folder_source(root, split).read()
    return [pictures.open(i)[1] for i in range(len(pictures.names))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    """Catches files that are refused because of their name or folder, and splits or labels that are mixed up."""
    write(tmp_path, LAYOUTS[layout])
    assert labels(tmp_path, "train") == [7, 8, 9]
    assert labels(tmp_path, "test") == [-1, -1]
    assert sorted(labels(tmp_path, ALL)) == [-1, -1, 7, 8, 9]
    assert np.asarray(folder_source(tmp_path, "train").read().open(1)[0]).ravel().tolist() == list(range(16, 32))


def test_files_beside_those_that_are_read_are_named(tmp_path):
    """Catches a second copy of the files, or a file that is no image, that is ignored without a message."""
    write(tmp_path, LAYOUTS["Kaggle"] | {"notes.txt": b"x", ".DS_Store": b""})
    (tmp_path / "lost").symlink_to("nowhere")
    note = folder_source(tmp_path, "train").note
    for part in ("1 *.txt ('notes.txt')", "1 hidden", "3 IDX (another one is read)", "No such file"):
        assert part in note


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"MNIST/raw/train-images-idx3-ubyte": IMAGES, "FashionMNIST/raw/train-images-idx3-ubyte": IMAGES},
            "several data sets .*FashionMNIST/raw/train.* MNIST/raw/train.*the folder of one",
        ),
        ({"a-train-images-idx3-ubyte": IMAGES, "b-train-images-idx3-ubyte": IMAGES}, "several data sets"),
        (LAYOUTS["dashes"] | {"cat.png": b""}, "IDX files .* and 1 pictures .*'cat.png'.*one kind"),
        ({"train-labels-idx1-ubyte": LABELS}, "holds no images .*1 IDX labels without images"),
        ({"train-images-idx3-ubyte": b"GIF89a.."}, "not an IDX file of bytes"),
        ({"train-images-idx3-ubyte": IMAGES[:-1]}, "cut or broken"),
        ({"train-images-idx3-ubyte.gz": PACKED[0][:-9]}, "cannot be read"),
        ({"train-images-idx3-ubyte": TEST, "train-labels-idx1-ubyte": LABELS}, "do not match"),
        ({"t10k-images-idx3-ubyte": TEST}, "no train-images-idx3-ubyte.*the train split is missing"),
    ],
)
def test_files_that_are_no_data_set(tmp_path, files, message):
    """Catches images of another data set that are read without an error, and a traceback."""
    write(tmp_path, files)
    with pytest.raises(UserError, match=message) as error:
        folder_source(tmp_path, "train").read()
    assert "\n" not in str(error.value)
