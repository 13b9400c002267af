"""The kind of a file, which is decided by its name and its first bytes."""

import functools
import gzip
import io

import numpy as np
import pytest
from PIL import Image

from images.content import FORMATS, PICTURES, kind_of

compress = functools.partial(gzip.compress, mtime=0)  # equal bytes in every worker of the tests


IDX = b"\0\0\x08\x01\0\0\0\x02ab"


def saved(save, array):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


NPY = saved(np.save, np.zeros((2, 4, 4), np.uint8))
NPZ = saved(np.savez, np.zeros((2, 4, 4), np.uint8))
PNG = b"\x89PNG\r\n\x1a\n"
HEIC = b"\0\0\0\x18ftypmif1\0\0\0\0heic"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a", PNG, "picture"),
        ("a.dat", b"\xff\xd8\xff\xe0", "picture"),
        ("a.PNG", b"", "picture"),  # the reader of pictures reports the error
        ("a.HEIC", b"", "picture"),
        ("a", HEIC, "picture"),
        ("a", b"P6\n# GIMP\n4 4 255\n", "picture"),
        ("a.txt", b"P6 is a format", ""),
        ("a.txt", b"BMW", ""),
        ("a.txt", b"", ""),
        ("a", IDX, "idx"),
        ("a.gz", compress(IDX), "idx"),
        ("a.gz", compress(IDX)[:-6], "idx"),  # cut; the reader of IDX files reports it
        ("a.gz", b"\x1f\x8b garbage", ""),
        ("a.png.gz", compress(PNG), ""),
        ("train-images.idx3-ubyte", b"", "idx"),
        ("t10k-labels-idx1-ubyte.gz", b"", "idx"),
        ("a.npy", NPY, "npy"),
        ("a.npz", NPY, "npy"),
        ("a", NPZ, "npz"),
        ("a.npy", NPZ, "npz"),
        ("a.npy", b"", "npy"),
        ("a.zip", b"PK\x03\x04" + bytes(26) + b"cat.png", ""),
    ],
)
def test_kind_of_a_file(tmp_path, name, content, kind):
    """Catches a file whose name does not fit its content, and text that begins like a picture."""
    (tmp_path / name).write_bytes(content)
    assert kind_of(tmp_path / name) == kind


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_that_is_read_is_recognised(form):
    """Catches a format that is read only with the right extension."""
    file = io.BytesIO()
    Image.new("RGB", (5, 5)).save(file, form)
    assert PICTURES.match(file.getvalue())
