"""Reading and writing files: atomic writes, locks, checksums, JSON and .npz."""

import contextlib
import errno
import hashlib
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
from jax.typing import ArrayLike
from jaxtyping import Shaped

from core.errors import UserError, warn
from core.parallel import is_first

REPOSITORY = Path(__file__).parents[1]
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # flock's errors on file systems without locks


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`. Renames that file to `path` if the block succeeds, else deletes it.

    In a run of several processes, all of them enter the block, but only the file of the first process is kept.
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
    """Yields a new folder beside `path`. Renames that folder to `path` if the block succeeds, else deletes it.

    The temporary name is fixed, so the next run deletes the folder that a killed run left. Callers must hold a lock.
    """
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locking(path: Path, busy_message: str, *, wait: bool) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which is created if needed.

    The operating system releases the lock when the process ends, even if it is killed. If another process holds the
    lock, this function prints `busy_message` and waits if `wait` is true; otherwise it raises UserError(busy_message).
    If the file system has no locks, it warns and continues without a lock.
    """
    from filelock import FileLock, Timeout  # takes 0.1 s to import

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(busy_message) from error
        print(busy_message)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f"{path.parent}: this file system has no locks ({error.strerror}): do not start a second run there")
    try:
        yield
    finally:
        lock.release()


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file's content, as 64 hexadecimal digits. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_failed_download(path: Path) -> None:
    """Raises UserError if a file that should be binary is empty, a Git LFS pointer, or a text such as a web page."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(80)
        if not head:
            raise UserError(f"{path} is empty; fetch it anew")
        if head.startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")
        if min(head.translate(None, b"\t\r\n"), default=32) >= 32:
            text = head.decode("utf-8", "replace").strip()
            raise UserError(
                f"{path} is a text that begins with {text[:40]!r}, so the download failed; fetch it anew (with a "
                "browser if a web page was saved instead)"
            )


def require_writable(folder: Path) -> None:
    """Creates the folder and raises OSError if no file can be written in it. Call it before long work starts."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_text(path: Path, text: str) -> None:
    """Writes the text as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes the value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if the file cannot be read or is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_npz(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes named arrays to an uncompressed .npz file, atomically."""
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def read_npz(path: Path, required: set[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """All arrays of an .npz file, read without unpickling.

    Raises UserError if the file cannot be read, contains anything except arrays, or lacks an array in `required`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if strange := next((name for name in file.zip.namelist() if not name.endswith(".npy")), ""):
                raise ValueError(f"{strange!r} in it is not an array")
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from error
    if missing := required - arrays.keys():
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; it holds {', '.join(sorted(arrays))}")
    return arrays
