"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from core.errors import UserError
from core.parallel import is_first

REPOSITORY = Path(__file__).parents[1]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds, removes it if not.

    Of several processes, which all come here, only the first keeps what it wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{socket.gethostname()}-{os.getpid()}-{path.name}")
    try:
        yield temporary
        if is_first():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`; renames it to `path` if the block succeeds, removes it if not.

    Its name is the same each time, so that what a killed process left is cleared by the next; the caller sees to it
    that no two make the same folder at once.
    """
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Makes the folder; raises OSError where no file can be made in it, before there is something to lose."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError where the file is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def read_npz(path: Path, required: set[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, without unpickling. Raises UserError if it is broken or lacks a required name."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from error
    if missing := required - arrays.keys():
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(arrays))}")
    return arrays
