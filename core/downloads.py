"""Downloads: a file is fetched once, with a progress bar, and checked against its SHA-256."""

from pathlib import Path

from core.errors import UserError
from core.files import file_sha256

CHUNK = 1 << 20  # bytes per read


def fetch(url: str, path: Path, sha256: str) -> Path:
    """Returns `path`, after downloading the file from `url` if it does not exist yet.

    A failed or interrupted download leaves no file at `path`. Raises UserError if the download fails or has another
    SHA-256 (the message says which file to put where by hand), or if an existing file has another SHA-256.
    """
    if not path.exists():
        _download(url, path, sha256)
    elif (found := file_sha256(path)) != sha256:
        raise UserError(f"{path} has SHA-256 {found}, not {sha256}: it is damaged or another file; delete it")
    return path


def _download(url: str, path: Path, sha256: str) -> None:
    import pooch  # takes 0.2 s to import

    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=CHUNK)
    try:
        pooch.retrieve(url, known_hash=sha256, fname=path.name, path=path.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # ValueError: the SHA-256 differs, or the URL is not valid
        reason = " ".join(str(error).split())
        raise UserError(
            f"{url}: cannot be fetched ({reason}); put the file whose SHA-256 is {sha256} at {path}"
        ) from error
