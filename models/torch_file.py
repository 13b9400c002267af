"""Reads the files of `torch.save` without torch, and without running what is in them.

A pickle is a program for a stack machine. Instead of handing it to `pickle`, whose machine can call anything it can
import and can be made to allocate without bound, `_interpret` is a machine of its own that knows the operations of
torch.save, as torch's `weights_only` loader does. It can build values and, by name, three things: an ordered dict, a
tensor and a parameter. Nothing is imported or called, so there is nothing that a file could start.
"""

import functools
import io
import math
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import jax.numpy as jnp
import numpy as np

from core.errors import UserError

DTYPES = {
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch ByteStorage": np.dtype("u1"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
    "torch BoolStorage": np.dtype("?"),
}
CALLS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}  # values; the others take down to a mark
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # opens what torch.save wrote before torch 1.6

# A checkpoint takes about 40 operations a tensor. The bound keeps a hostile pickle below some 150 MB and seconds.
MAX_OPERATIONS = 500_000

# What zipfile, pickletools and the functions below raise where a file is damaged or hostile.
DAMAGE = (OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError, struct.error, BadZipFile)

ReadStorage = Callable[[str, int], bytes | bytearray]  # (key, size in bytes) -> the storage's bytes


class Storage(NamedTuple):
    dtype: np.dtype
    data: bytes | bytearray


def read_pth(path: str | Path) -> Any:
    """What torch.save put into a file: tensors as numpy arrays in nested dicts, lists and tuples.

    Reads the zip format (torch 1.6 and later) and the one before it. Every byte that is allocated is in the file, and
    every tensor lies inside its storage. The containers are the file's own: they may even hold themselves.

    Raises UserError where the file cannot be read, is damaged, or holds anything but tensors, lists, tuples, dicts,
    numbers, bools, None and strings.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        return _read_zip(path) if is_zip else _read_legacy(path.read_bytes())
    except DAMAGE as error:
        # A LookupError's own text, such as "pop from empty list", would tell the user nothing.
        reason = "its parts do not fit together" if isinstance(error, LookupError) else error
        raise UserError(
            f"{path}: cannot be read as a PyTorch file ({reason}); fetch it anew, or let torch.save write it again "
            "with nothing but tensors, lists, dicts, numbers and strings in it"
        ) from error


def _read_zip(path: Path) -> Any:
    """A zip of data.pkl (the pickle), data/KEY (one storage each) and byteorder, all in one folder, uncompressed."""
    with ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != ZIP_STORED for member in members):
            raise ValueError("it is compressed, and torch.save compresses nothing")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts claim more bytes than the file has")
        names = archive.namelist()
        folder = names[0].split("/")[0] if names else ""
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")

        @functools.cache
        def read_storage(key: str, size: int) -> bytes:
            return archive.read(f"{folder}/data/{key}")

        return _interpret(io.BytesIO(archive.read(f"{folder}/data.pkl")), read_storage)


def _read_legacy(data: bytes) -> Any:
    """Five pickles (magic number, version, system, value, keys), then each key's storage: its length, its numbers."""
    stream = io.BytesIO(data)
    magic, version, system = (_interpret(stream, _no_storage) for _ in range(3))
    if magic != LEGACY_MAGIC or version != 1001 or not isinstance(system, dict):
        raise ValueError("it is neither a zip nor of the older format")
    if system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")

    buffers: dict[str, bytearray] = {}  # filled below: the tensors on them are made before their numbers are read
    room = len(data)

    def read_storage(key: str, size: int) -> bytearray:
        nonlocal room
        if key not in buffers:
            room -= size
            if room < 0:
                raise ValueError("its storages claim more bytes than the file has")
            buffers[key] = bytearray(size)
        return buffers[key]

    value, keys = _interpret(stream, read_storage), _interpret(stream, _no_storage)
    for key in _expect(list, keys):
        buffer = buffers.pop(_expect(str, key))
        stream.seek(8, io.SEEK_CUR)  # over the length, known from the pickle
        if stream.readinto(buffer) != len(buffer):
            raise ValueError("it ends early")
    if buffers:
        raise ValueError("it lacks some storages")
    return value


def _no_storage(key: str, size: int) -> bytes:
    raise ValueError("a storage where none belongs")


def _interpret(stream: io.BytesIO, read_storage: ReadStorage) -> Any:
    """The value of the pickle at the stream's position, after which the stream stands at its end.

    Raises ValueError or LookupError where the pickle is damaged or wants more than torch.save's plain values.
    """
    stack, marks, memo = [], [], {}

    def take(name: str) -> list:
        start = len(stack) - TAKES[name] if name in TAKES else marks.pop()
        if start < 0:
            raise IndexError
        items = stack[start:]
        del stack[start:]
        return items

    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {MAX_OPERATIONS} operations")
        match operation.name:
            case "PROTO":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" as name:
                stack.append(CONSTANTS[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(take(name)))
            case "APPEND" | "APPENDS" as name:
                items = take(name)
                _expect(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = take(name)
                _set_items(_expect(dict, stack[-1]), items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_allowed(argument))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), read_storage))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_rebuild(stack.pop(), arguments))
            case "BUILD":  # attributes of a state dict, such as its modules' versions: of no use here
                stack.pop()
                _expect(dict, stack[-1])
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"its pickle uses {name}, which torch.save's default protocol does not")


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _set_items(target: dict, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
            # A nested tuple can take for ever to hash, and large integers can be chosen to collide.
            raise ValueError(
                f"a key of one of its dicts is a {type(key).__name__}, neither a string nor a small number"
            )
        target[key] = value


def _allowed(name: str) -> str:
    if name not in DTYPES and name not in CALLS:
        raise ValueError(f"it asks for {name.replace(' ', '.')[:100]!r}, which is refused, and nothing of it was run")
    return name


def _storage(identity: Any, read_storage: ReadStorage) -> Storage:
    match identity:
        case ("storage", str(kind), str(key), _, int(count)) | ("storage", str(kind), str(key), _, int(count), None):
            dtype = DTYPES[kind]
        case _:
            raise ValueError("its pickle names a storage in an unknown way")
    size = count * dtype.itemsize
    data = read_storage(key, size) if count >= 0 else b""
    if len(data) != size:
        raise ValueError(f"storage {key[:20]!r} has {len(data)} bytes, its tensors expect {size}")
    return Storage(dtype, data)


def _rebuild(name: Any, arguments: Any) -> Any:
    """What one of CALLS makes of its arguments."""
    match _expect(str, name), _expect(tuple, arguments):
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_tensor_v2", (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            return _tensor(storage, offset, shape, strides)
        case "torch._utils _rebuild_parameter", (np.ndarray() as tensor, *_):
            return tensor
    raise ValueError("its pickle rebuilds a tensor from the wrong parts")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """A view of the storage; offset and strides count numbers, not bytes.

    numpy checks the bounds too, but in integers that can overflow.
    """
    itemsize = storage.dtype.itemsize
    total = len(storage.data) // itemsize
    if len(shape) != len(strides) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape + strides):
        raise ValueError("a tensor has an impossible shape")
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if not 0 <= offset <= total or any(n > total for n in shape) or math.prod(shape) > total or reach >= max(total, 1):
        raise ValueError(f"a tensor of shape {list(shape)} lies outside its storage of {total}")
    byte_strides = [stride * itemsize for stride in strides]
    return np.ndarray(shape, storage.dtype, storage.data, offset * itemsize, byte_strides)
