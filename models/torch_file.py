"""Reads files of `torch.save` without torch, and without executing code from the file.

A pickle is a program for a stack machine. Python's `pickle` imports and calls anything that the program names, and can
be made to allocate unlimited memory. So `interpret` supports only the operations that torch.save uses, similar to
torch's `weights_only` loader. It builds plain values and three kinds of objects: ordered dicts, tensors and parameters.
It never imports or calls anything that the file names.
"""

import functools
import io
import math
import pickletools
import reprlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, no_type_check
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.files import refuse_failed_download

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
# The number of values that an operation takes from the stack. Other operations take all values above the last mark.
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
OPERATIONS = frozenset(  # those of torch.save's default protocol
    {*CONSTANTS, *TAKES, "PROTO", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_LIST"}
    | {"EMPTY_DICT", "MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "BINPERSID", "STOP", "TUPLE"}
    | {"APPENDS", "SETITEMS", "REDUCE", "BUILD"}
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file of torch.save before torch 1.6

# A checkpoint has about 40 operations per tensor. With this limit, a malicious pickle costs 150 MB and a few seconds.
MAX_OPERATIONS = 500_000

# The exceptions that zipfile, pickletools and the functions below raise for a damaged or malicious file.
DAMAGE = (OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError, struct.error, BadZipFile)

ReadStorage = Callable[[str, int], bytes | bytearray]
"""Called with the key and the size in bytes of a storage; returns the content of the storage."""


class Dialect(NamedTuple):
    """The names and operations that a kind of pickle may use.

    Attributes:
      names: the classes and functions that the pickle may name.
      operations: the operations it may use besides those of torch.save's default protocol.
      rebuild: called as rebuild(name, arguments) for REDUCE; returns the result of calling `name`.
      build: called as build(object, attributes) for BUILD; returns the object with these attributes.
    """

    names: frozenset[str]
    operations: frozenset[str]
    rebuild: Callable[[Any, Any], Any]
    build: Callable[[Any, Any], Any]


class Storage(NamedTuple):
    """The memory that one or several tensors share."""

    dtype: np.dtype
    data: bytes | bytearray


def read_pth(path: str | Path) -> Any:
    """Reads the value that torch.save wrote: numpy arrays for tensors, in nested dicts, lists and tuples.

    Reads the zip format (torch 1.6 and later) and the older format. Allocates no more bytes for storages than the file
    has, and checks that every tensor lies inside its storage. If a container in the file contains itself, the container
    in the result does, too.

    Raises UserError if the file cannot be read, is damaged, or holds other objects than tensors, lists, tuples, dicts,
    numbers, bools, None and strings.
    """
    path = Path(path)
    refuse_failed_download(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        return _read_zip(path) if is_zip else read_legacy(path.read_bytes())
    except DAMAGE as error:
        # The text of a LookupError, such as "pop from empty list", would not help the user.
        reason = "its parts do not fit together" if isinstance(error, LookupError) else error
        raise UserError(
            f"{path}: cannot be read as a PyTorch file ({reason}); fetch it anew, or write it again with "
            "torch.save, with only tensors, lists, dicts, numbers and strings in it"
        ) from error


def _read_zip(path: Path) -> Any:
    """Reads an uncompressed zip with one folder of data.pkl (the pickle), data/KEY (the storages) and byteorder."""
    with ZipFile(path) as archive:
        members = archive.infolist()
        names = archive.namelist()
        folder = names[0].split("/")[0] if names else ""
        if f"{folder}/data.pkl" not in names:
            raise ValueError(f"it is a zip of {reprlib.repr(names)}; unpack it and give the file that you need")
        if any(member.compress_type != ZIP_STORED for member in members):
            raise ValueError("it is compressed, but torch.save never compresses")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts claim more bytes than the file has")
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")

        @functools.cache
        def read_storage(key: str, size: int) -> bytes:
            return archive.read(f"{folder}/data/{key}")

        return interpret(io.BytesIO(archive.read(f"{folder}/data.pkl")), TORCH, read_storage)


def read_legacy(data: bytes) -> Any:
    """Reads the content of a file in the older format.

    The format has five pickles (magic number, version, system, value, keys), then the length and the content of the
    storage of each key.
    """
    stream = io.BytesIO(data)
    magic, version, system = (interpret(stream, TORCH) for _ in range(3))
    if magic != LEGACY_MAGIC or version != 1001 or not isinstance(system, dict):
        raise ValueError("it is neither a zip nor in the older format")
    if system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")

    buffers: dict[str, bytearray] = {}  # tensors refer to these storages before the loop below fills them
    unclaimed = len(data)

    def read_storage(key: str, size: int) -> bytearray:
        nonlocal unclaimed
        if key not in buffers:
            unclaimed -= size
            if unclaimed < 0:
                raise ValueError("its storages claim more bytes than the file has")
            buffers[key] = bytearray(size)
        return buffers[key]

    value = interpret(stream, TORCH, read_storage)
    keys = interpret(stream, TORCH)
    for key in expect(list, keys):
        buffer = buffers.pop(expect(str, key))
        stream.seek(8, io.SEEK_CUR)  # skips the length, which the pickle has given
        if stream.readinto(buffer) != len(buffer):
            raise ValueError("it ends early")
    if buffers:
        raise ValueError("it lacks some storages")
    return value


def _no_storage(key: str, size: int) -> bytes:
    raise ValueError("it has a storage in a pickle that may not have one")


def interpret(stream: BinaryIO, dialect: Dialect, read_storage: ReadStorage = _no_storage) -> Any:
    """Returns the value of the pickle at the stream's position, and moves the stream to the end of the pickle.

    Raises ValueError or LookupError if the pickle is damaged or uses something that the dialect does not allow.
    """
    stack: list[Any] = []
    marks: list[int] = []  # the length of the stack at each mark
    memo: dict[int, Any] = {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {MAX_OPERATIONS} operations")
        if operation.name not in OPERATIONS and operation.name not in dialect.operations:
            raise ValueError(f"its pickle uses {operation.name}, which torch.save's default protocol does not")
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" as name:
                stack.append(CONSTANTS[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_allowed(argument, dialect))
            case "STACK_GLOBAL":
                name = expect(str, stack.pop())
                stack.append(_allowed(f"{expect(str, stack.pop())} {name}", dialect))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), read_storage))
            case "STOP":
                return stack.pop()
            case name:
                _combine(name, stack, marks, dialect)


@no_type_check  # called for every operation, so run-time checks would slow down the tests
def _combine(name: str, stack: list[Any], marks: list[int], dialect: Dialect) -> None:
    """Executes an operation that combines values on the stack."""
    match name:
        case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(_take(name, stack, marks)))
        case "APPEND" | "APPENDS" | "ADDITEMS":
            items = _take(name, stack, marks)
            expect(list, stack[-1]).extend(items)
        case "SETITEM" | "SETITEMS":
            items = _take(name, stack, marks)
            _set_items(expect(dict, stack[-1]), items)
        case "REDUCE" | "NEWOBJ":
            arguments = stack.pop()
            stack.append(dialect.rebuild(stack.pop(), arguments))
        case "BUILD":
            attributes = stack.pop()
            stack.append(dialect.build(stack.pop(), attributes))


@no_type_check  # called for every operation, so run-time checks would slow down the tests
def _take(name: str, stack: list[Any], marks: list[int]) -> list[Any]:
    """Removes the operands of an operation from the stack and returns them."""
    start = len(stack) - TAKES[name] if name in TAKES else marks.pop()
    if start < 0:
        raise IndexError
    items = stack[start:]
    del stack[start:]
    return items


def expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _set_items(target: dict, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
            # Hashing a nested tuple can take forever, and large integers can be chosen to have equal hashes.
            raise ValueError(
                f"a key of one of its dicts is a {type(key).__name__}, neither a string nor a small number"
            )
        target[key] = value


def _allowed(name: str, dialect: Dialect) -> str:
    if name not in dialect.names:
        raise ValueError(f"it names {name.replace(' ', '.')[:100]!r}, which is refused; no code of the file was run")
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


def rebuild(name: Any, arguments: Any) -> Any:
    """Returns the result of one of CALLS for these arguments."""
    match expect(str, name), expect(tuple, arguments):
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_tensor_v2", (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            return _tensor(storage, offset, shape=shape, strides=strides)
        case "torch._utils _rebuild_parameter", (np.ndarray() as tensor, *_):
            return tensor
    raise ValueError("its pickle rebuilds a tensor from invalid arguments")


def _run_build(target: Any, attributes: Any) -> Any:
    """Returns the state dict unchanged. Its attributes, such as module versions, are ignored."""
    return expect(dict, target)


TORCH = Dialect(frozenset({*DTYPES, *CALLS}), frozenset(), rebuild, _run_build)


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """Returns a view of the storage. Offset and strides are in elements, not in bytes.

    The bounds are checked here, because NumPy's check uses integers that can overflow.
    """
    itemsize = storage.dtype.itemsize
    total = len(storage.data) // itemsize
    if len(shape) != len(strides) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape + strides):
        raise ValueError("a tensor has an invalid shape")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if not 0 <= offset <= total or any(n > total for n in shape) or math.prod(shape) > total or last >= max(total, 1):
        raise ValueError(f"a tensor of shape {list(shape)} lies outside its storage of {total} elements")
    byte_strides = [stride * itemsize for stride in strides]
    return np.ndarray(shape, storage.dtype, storage.data, offset * itemsize, byte_strides)
