"""Writes files as torch.save does, and invalid files, byte by byte, for tests of the reader."""

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

STORAGES = {"float32": b"FloatStorage", "float64": b"DoubleStorage", "float16": b"HalfStorage", "int64": b"LongStorage"}


def body(value: Any) -> bytes:
    """Returns the operations that push a plain value: its pickle without PROTO and STOP."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor(key: str, dtype: str, count: int, shape: Any, strides: Any, offset: Any = 0) -> bytes:
    """Returns the operations that push a tensor on storage `key` of `count` elements. Its layout may be invalid."""
    storage = b"(" + body("storage") + b"ctorch\n%b\n" % STORAGES[dtype] + body(key) + body("cpu") + body(count) + b"tQ"
    arguments = body(offset) + body(shape) + body(strides) + body(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"tR"


def write_zip(path: Path, pickle_bytes: bytes, storages: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """Writes a file of torch 1.6 or later with one pickle. Options are those of ZipFile. Returns the path."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("x/data.pkl", pickle_bytes)
        for key, data in (storages or {}).items():
            archive.writestr(f"x/data/{key}", data)
    return path


def pickled(operations: bytes) -> bytes:
    """Returns a complete pickle of these operations."""
    return b"\x80\x02" + operations + b"."


def legacy(operations: bytes, keys: bytes = body([]), storages: bytes = b"") -> bytes:
    """Returns a file in the format before torch 1.6: one pickle of `operations`, the keys and the storages."""
    head = [body(0x1950A86A20F9469CFC6C), body(1001), body({"little_endian": True})]
    return b"".join(map(pickled, (*head, operations, keys))) + storages


def write_state_dict(path: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> Path:
    """Writes a dict of tensors as torch.save does."""
    items = b"".join(
        body(name) + tensor(name, a.dtype.name, a.size, a.shape, tuple(s // a.itemsize for s in a.strides))
        for name, a in arrays.items()
    )
    return write_zip(path, pickled(b"}(" + items + b"u"), {name: array.tobytes() for name, array in arrays.items()})


def rule(seed: int, shape: int | Sequence[int]) -> Float[np.ndarray, "..."]:
    """Generates weights of the networks in tests/data/*.npz, whose real weights would be too large to store."""
    size = int(np.prod(shape))
    return (np.random.default_rng(seed).standard_normal(size) * size**-0.25).astype(np.float32).reshape(shape)


def write_paper_checkpoint(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    """Writes a checkpoint of the paper's code with generated weights.

    Returns the sizes, inputs and outputs of the network.
    """
    with np.load(Path(__file__).parent / "data/paper_networks.npz") as file:
        found = {key.removeprefix(f"{name}_"): file[key] for key in file if key.startswith(f"{name}_")}
    storages = {str(key): rule(key, size).tobytes() for key, size in enumerate(found["sizes"])}
    write_zip(path, found["pickle"].tobytes(), storages)
    return json.loads(str(found["config"])), found
