"""The reader of torch.save's files: it is exact for real files, and safe with an error of one line for all others."""

import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from models.torch_file import read_pth
from tests.torch_pickles import body, legacy, pickled, tensor, write_zip

DATA = Path(__file__).parents[1] / "data"
REAL = ("torch_zip.pth", "torch_legacy.pth")


def refusal(path: Path) -> str:
    """Returns the error message for a file that must be refused. Checks that it is one line."""
    with pytest.raises(UserError) as error:
        read_pth(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


@pytest.mark.parametrize("name", REAL)
def test_reads_files_of_torch(name):
    """Catches a wrong dtype, stride, offset, operation or storage order. Both files were written by torch 2.13."""
    value = read_pth(DATA / name)
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    few = [0.5, -2, 3]
    expected = {
        "float32": base,
        "transposed": base.transpose(2, 0, 1),
        "part": base[1, 1:, ::2],
        "scalar": np.float32(3.5),
        "empty": np.zeros(0, np.float32),
        "channels_last": np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4),
        "float64": np.array(few),
        "float16": np.array(few, np.float16),
        "bfloat16": np.array(few, jnp.bfloat16),
        "int64": np.array([2**40, -1]),
        "int32": np.array([-5], np.int32),
        "uint8": np.array([255], np.uint8),
        "bool": np.array([True, False]),
        "parameter": np.array(few, np.float32),
    }
    tensors = value.pop("tensors")
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors[key].dtype == array.dtype, key
        np.testing.assert_array_equal(tensors[key], array, err_msg=key)
    numbers = [1, 300, 70000, -1, 2**40, 1.5, True, False, None]
    assert value == {"numbers": numbers, "nested": {"text": "é", "tuple": (1, (2, 3), ())}, 0: "zero"}


class Call:
    """An object whose pickle makes Python's unpickler call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("write", [write_zip, lambda path, pickle_bytes: path.write_bytes(pickle_bytes)])
@pytest.mark.parametrize("function", [os.system, eval, os.unlink, getattr])
def test_executes_no_code(tmp_path, function, write, protocol):
    """Catches a reader that passes any part of the file to pickle. A canary file would be created or deleted."""
    canary = tmp_path / "canary"
    path = tmp_path / "x.pth"
    arguments = {os.system: f"touch {canary}", eval: f"open({str(canary)!r}, 'w')", os.unlink: str(canary)}
    payload = pickle.dumps({"model": Call(function, arguments.get(function, canary))}, protocol=protocol)
    if function is os.unlink:
        canary.touch()
    write(path, payload)
    refusal(path)
    assert canary.exists() == (function is os.unlink)


@pytest.mark.parametrize("operations", [b"cposix\nsystem\n", b"cbuiltins\neval\n(" + body("1") + b"tR"])
def test_refused_function_is_named(tmp_path, operations):
    """Catches a message that does not say what is wrong with the file."""
    module, name = operations[1:].split(b"\n")[:2]
    for path in (write_zip(tmp_path / "zip.pth", pickled(operations)), tmp_path / "legacy.pth"):
        if not path.exists():
            path.write_bytes(legacy(operations))
        assert f"'{module.decode()}.{name.decode()}', which is refused" in refusal(path)


@pytest.mark.parametrize(
    "operations", [b"\x81", b"\x92", b"i" + b"posix\nsystem\n", b"o", b"\x93", b"\x82\x01", b"P1\n"]
)
def test_refuses_other_call_operations(tmp_path, operations):
    """Catches support for NEWOBJ, NEWOBJ_EX, INST, OBJ, STACK_GLOBAL, EXT1 or PERSID."""
    call = b"(" + body("posix") + body("system")
    assert "which torch.save's default protocol does not" in refusal(
        write_zip(tmp_path / "x.pth", pickled(call + operations))
    )


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((5,), (1,), 0),
        ((2, 2), (3, 1), 0),  # ends at element 4, one past the last
        ((2,), (1,), 3),
        ((4,), (0,), -1),
        ((4,), (-1,), 3),
        ((-1,), (1,), 0),
        ((1,), (1,), 4),
        ((2**62, 2**62), (0, 0), 0),
        ((0, 2**70), (1, 1), 0),
        ((2,), (2**64,), 0),
        ((4,), ((2**64 + 8) // 12,), 0),  # with 64-bit overflow, the last element would be 8 bytes from the first
        ((2**64,), (0,), 0),
        ((100,), (0,), 0),  # one element repeated 100 times: valid in torch, but 2**40 times would fill the memory
        ((2.0,), (1,), 0),
        (("2",), (1,), 0),
        ([2], [1], 0),
        ((2,), (1, 1), 0),
        ((1,) * 100, (1,) * 100, 0),
        ((2,), (1,), 1.0),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, shape, strides, offset):
    """Catches a view of memory outside the file, and a view that is too large to copy."""
    operations = tensor("0", "float32", 4, shape, strides, offset)
    assert "cannot be read" in refusal(write_zip(tmp_path / "x.pth", pickled(operations), {"0": bytes(16)}))


def test_tensor_cannot_serve_as_storage(tmp_path):
    """Catches bounds computed from a tensor's size. A repeated view of one element would count as a large storage."""
    first = tensor("0", "float32", 4, (4,), (0,)) + b"0"
    second = b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor("0", "float32", 4, (4,), (0,)) + body(0) + body((4,))
    path = write_zip(tmp_path / "x.pth", pickled(first[:-1] + second + body((1,)) + b"tR"), {"0": bytes(16)})
    assert "invalid arguments" in refusal(path)


def test_accepts_any_stride_on_axes_of_length_one(tmp_path):
    """Catches real files that are refused. torch writes arbitrary strides for axes of length 1."""
    operations = tensor("0", "float32", 4, (1, 4), (10**12, 1))
    path = write_zip(tmp_path / "x.pth", pickled(operations), {"0": np.arange(4, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_pth(path), [[0, 1, 2, 3]])


def nested_key(depth: int) -> bytes:
    return b"}" + body(1) + b"".join(b"q%c0h%ch%c\x86" % (1, 1, 1) for _ in range(depth)) + b"Ns"


@pytest.mark.parametrize(
    "pickle_bytes",
    [
        pickled(b"]" * 3_000_000),
        pickled(b"Nr\xff\xff\xff\xff"),  # Python's unpickler would allocate a memo of 2**32 entries
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        pickled(nested_key(100)),  # hashing this tuple takes 2**100 steps
        pickled(b"(" * 200_000 + b"t" * 200_000),  # nested deeper than any recursion limit
        pickled(tensor("0", "float32", 2**60, (4,), (1,))),
    ],
)
def test_time_and_memory_are_bounded(tmp_path, pickle_bytes):
    """Catches unlimited time or memory, in both formats. Two of these pickles are valid and small and may be read."""
    zipped = write_zip(tmp_path / "zip.pth", pickle_bytes)
    old = tmp_path / "legacy.pth"
    old.write_bytes(legacy(pickle_bytes[2:-1]))
    tracemalloc.start()
    start = time.monotonic()
    for path in (zipped, old):
        try:
            read_pth(path)
        except UserError as error:
            assert len(str(error)) < 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 and time.monotonic() - start < 60


def test_refuses_zip_bombs(tmp_path):
    """Catches parts that are larger than the file: compressed parts, or the same bytes listed several times."""
    packed = write_zip(tmp_path / "packed.pth", pickled(b"N"), {"0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(packed)
    data = bytearray(write_zip(tmp_path / "claims.pth", pickled(b"N"), {"0": bytes(1000)}).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "claims.pth").write_bytes(data)
    assert "more bytes than the file" in refusal(tmp_path / "claims.pth")


def test_damaged_files_are_refused(tmp_path):
    """Catches a traceback for files that are missing, of another kind, cut short, or big-endian."""
    path = tmp_path / "x.pth"
    assert "No such file" in refusal(path)
    for data in (b"", b"<!DOCTYPE html>", b"PK", b"PK\x05\x06" + bytes(18), legacy(b"N")[:-1], pickle.dumps([1, 2])):
        path.write_bytes(data)
        refusal(path)
    with zipfile.ZipFile(write_zip(path, pickled(b"N")), "a") as archive:
        archive.writestr("x/byteorder", "big")
    assert "little-endian" in refusal(path)
    path.write_bytes(legacy(b"N").replace(body({"little_endian": True}), body({"little_endian": False})))
    assert "little-endian" in refusal(path)
    path.write_bytes(legacy(tensor("0", "float32", 4, (4,), (1,)).replace(b"tQ", b"NtQ"), body(["0"]), bytes(8 + 15)))
    assert "ends early" in refusal(path)


def mutations(data: bytes, rng: random.Random, count: int):
    """Yields `count` copies of data with one to four random changes: flips, cuts, repeats, inserted operations."""
    splices = [bytes([code]) for code in range(256)] + [
        b"cposix\nsystem\n",
        b"r\xff\xff\xff\x7f",
        b"(" * 50,
        b"\x8a\xff",
    ]
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(changed) + 1)
            end = min(len(changed), at + rng.choice([0, 1, 1, 1, 8, 64, len(changed)]))
            changed[at:end] = rng.choice([rng.randbytes(end - at), b"", rng.choice(splices), changed[at:end] * 2])
        yield bytes(changed)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, on names with a backslash
@pytest.mark.parametrize("name", [*REAL, "pickle"])
def test_fuzzed_files_give_a_value_or_an_error_of_one_line(tmp_path, name):
    """Catches exceptions other than UserError.

    In a zip, the checksum would detect most changes to the pickle. So the case "pickle" changes it before it is zipped.
    """
    rng = random.Random(name)
    path = tmp_path / "x.pth"
    storages = {}
    if name == "pickle":
        with zipfile.ZipFile(DATA / REAL[0]) as archive:
            data = archive.read("torch_zip/data.pkl")
            storages = {i.split("/")[2]: archive.read(i) for i in archive.namelist() if i.startswith("torch_zip/data/")}
    else:
        data = (DATA / name).read_bytes()
    refused = 0
    for changed in mutations(data, rng, 1500):
        write_zip(path, changed, storages) if name == "pickle" else path.write_bytes(changed)
        try:
            read_pth(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 700
