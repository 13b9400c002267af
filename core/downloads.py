"""Files fetched once: with progress, checked against their SHA-256, and whole or absent."""

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from core.errors import UserError
from core.files import replacing

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without an answer


def fetch(url: str, path: Path, sha256: str) -> Path:
    """`path`, fetched from `url` where it is not there yet.

    Raises UserError where it cannot be had, saying what to put where, and where the file is not the one of `sha256`.
    """
    if not path.exists():
        try:
            with replacing(path) as temporary:
                _download(url, temporary, path.name)
                _check(temporary, sha256, f"{url}: what came")
        except (OSError, HTTPException, ValueError) as error:
            raise UserError(
                f"{url}: cannot be fetched ({error}); put the file whose SHA-256 is {sha256} at {path}"
            ) from error
    _check(path, sha256, str(path))
    return path


def _download(url: str, path: Path, name: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0)) or None
        with tqdm(total=size, desc=f"fetch {name}", unit="B", unit_scale=True) as progress:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))


def _check(path: Path, sha256: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{what} has SHA-256 {found}, not {sha256}: it is damaged or another file")
