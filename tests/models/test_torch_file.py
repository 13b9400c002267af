"""The reader of torch.save's files: right on real ones, harmless and short of words on all others."""

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
    with pytest.raises(UserError) as error:
        read_pth(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


@pytest.mark.parametrize("name", REAL)
def test_reads_what_torch_wrote(name):
    """Catches a wrong dtype, stride, offset, operation or storage order: both files are torch 2.13's own."""
    value = read_pth(DATA / name)
    base, few = np.arange(24, dtype=np.float32).reshape(2, 3, 4), [0.5, -2, 3]
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
    """Pickles as a call, which the standard unpickler would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("write", [write_zip, lambda path, pickle_bytes: path.write_bytes(pickle_bytes)])
@pytest.mark.parametrize("function", [os.system, eval, os.unlink, getattr])
def test_executes_nothing(tmp_path, function, write, protocol):
    """Catches a reader that hands any part of the file to pickle: the canary would be touched."""
    canary, path = tmp_path / "canary", tmp_path / "x.pth"
    arguments = {os.system: f"touch {canary}", eval: f"open({str(canary)!r}, 'w')", os.unlink: str(canary)}
    payload = pickle.dumps({"model": Call(function, arguments.get(function, canary))}, protocol=protocol)
    if function is os.unlink:
        canary.touch()
    write(path, payload)
    refusal(path)
    assert canary.exists() == (function is os.unlink)


@pytest.mark.parametrize("operations", [b"cposix\nsystem\n", b"cbuiltins\neval\n(" + body("1") + b"tR"])
def test_names_what_it_refuses(tmp_path, operations):
    """Catches a refusal that leaves the user guessing what is wrong with the file."""
    module, name = operations[1:].split(b"\n")[:2]
    for path in (write_zip(tmp_path / "zip.pth", pickled(operations)), tmp_path / "legacy.pth"):
        if not path.exists():
            path.write_bytes(legacy(operations))
        assert f"'{module.decode()}.{name.decode()}', which is refused" in refusal(path)


@pytest.mark.parametrize(
    "operations", [b"\x81", b"\x92", b"i" + b"posix\nsystem\n", b"o", b"\x93", b"\x82\x01", b"P1\n"]
)
def test_refuses_other_ways_to_call(tmp_path, operations):
    """Catches a case added for NEWOBJ, NEWOBJ_EX, INST, OBJ, STACK_GLOBAL, EXT1 or PERSID."""
    call = b"(" + body("posix") + body("system")
    assert "which torch.save's default protocol does not" in refusal(
        write_zip(tmp_path / "x.pth", pickled(call + operations))
    )


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((5,), (1,), 0),
        ((2, 2), (3, 1), 0),  # reaches number 4 of 4
        ((2,), (1,), 3),
        ((4,), (0,), -1),
        ((4,), (-1,), 3),
        ((-1,), (1,), 0),
        ((1,), (1,), 4),
        ((2**62, 2**62), (0, 0), 0),
        ((0, 2**70), (1, 1), 0),
        ((2,), (2**64,), 0),
        ((4,), ((2**64 + 8) // 12,), 0),  # in 64 bits the last number would lie 8 bytes from the first
        ((2**64,), (0,), 0),
        ((100,), (0,), 0),  # one number shown a hundred times: legal in torch, a bomb at 2**40
        ((2.0,), (1,), 0),
        (("2",), (1,), 0),
        ([2], [1], 0),
        ((2,), (1, 1), 0),
        ((1,) * 100, (1,) * 100, 0),
        ((2,), (1,), 1.0),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, shape, strides, offset):
    """Catches a view of memory that is not the file's, and one too large to copy."""
    operations = tensor("0", "float32", 4, shape, strides, offset)
    assert "cannot be read" in refusal(write_zip(tmp_path / "x.pth", pickled(operations), {"0": bytes(16)}))


def test_a_tensor_is_no_storage(tmp_path):
    """Catches bounds taken from a tensor's size: a view of one number, repeated, would pass for a large storage."""
    first = tensor("0", "float32", 4, (4,), (0,)) + b"0"
    second = b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor("0", "float32", 4, (4,), (0,)) + body(0) + body((4,))
    path = write_zip(tmp_path / "x.pth", pickled(first[:-1] + second + body((1,)) + b"tR"), {"0": bytes(16)})
    assert "the wrong parts" in refusal(path)


def test_takes_strides_of_short_axes(tmp_path):
    """Catches a refusal of real files: torch leaves any stride on an axis of length 1."""
    operations = tensor("0", "float32", 4, (1, 4), (10**12, 1))
    path = write_zip(tmp_path / "x.pth", pickled(operations), {"0": np.arange(4, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_pth(path), [[0, 1, 2, 3]])


def nested_key(depth: int) -> bytes:
    return b"}" + body(1) + b"".join(b"q%c0h%ch%c\x86" % (1, 1, 1) for _ in range(depth)) + b"Ns"


@pytest.mark.parametrize(
    "pickle_bytes",
    [
        pickled(b"]" * 3_000_000),
        pickled(b"Nr\xff\xff\xff\xff"),  # the standard unpickler would make a memo of 2**32 entries
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        pickled(nested_key(100)),  # a tuple that takes 2**100 steps to hash
        pickled(b"(" * 200_000 + b"t" * 200_000),  # deeper than any recursion
        pickled(tensor("0", "float32", 2**60, (4,), (1,))),
    ],
)
def test_bombs_do_not_go_off(tmp_path, pickle_bytes):
    """Catches time or memory without bound, in either format. Two of these are valid and small: they may be read."""
    zipped, old = write_zip(tmp_path / "zip.pth", pickle_bytes), tmp_path / "legacy.pth"
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
    """Catches a part that unpacks to more than the file: compressed, or one stretch of bytes listed many times."""
    packed = write_zip(tmp_path / "packed.pth", pickled(b"N"), {"0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(packed)
    data = bytearray(write_zip(tmp_path / "claims.pth", pickled(b"N"), {"0": bytes(1000)}).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "claims.pth").write_bytes(data)
    assert "more bytes than the file" in refusal(tmp_path / "claims.pth")


def test_refuses_damage_in_plain_words(tmp_path):
    """Catches files that are no files, of another kind, cut short, or written on a big-endian machine."""
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
    """Flips, cuts, repeats and operations spliced in, one to four at a time."""
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
def test_fuzzed_files_give_a_value_or_one_line(tmp_path, name):
    """Catches any exception but UserError. Inside a zip the checksum would hide most changes to the pickle, so there
    the pickle is changed before it is zipped."""
    rng, path = random.Random(name), tmp_path / "x.pth"
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
