"""Reads pictures from a zip file, with the labels in its dataset.json, as the tools of EDM and StyleGAN write it."""

import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from core.errors import UserError
from images.content import PICTURE_ENDINGS
from images.decoded import NO_LABEL
from images.pixels import open_picture

LABELS = "dataset.json"  # the member with {"labels": [[name, label], ...]}, or with null instead of the list


class ZippedPictures:
    """The pictures in a zip file.

    Attributes:
      names: the members with the file extension of a picture, sorted, without hidden ones.

    Raises UserError if the file is damaged, if it has no pictures, or if its labels are not class numbers.
    """

    def __init__(self, path: Path):
        try:
            self._archive = zipfile.ZipFile(path)
            members = self._archive.namelist()
            self._labels = _labels(self._archive) if LABELS in members else {}
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{path}: not a readable zip file ({error})") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {LABELS} should hold pairs of a name and the number of a class") from error
        hidden = (".", "__MACOSX")
        self.names = sorted(
            name
            for name in members
            if name.lower().endswith(PICTURE_ENDINGS) and not any(part.startswith(hidden) for part in name.split("/"))
        )
        if not self.names:
            raise UserError(f"{path}: holds no pictures")

    def open(self, name: str) -> tuple[Image.Image, int]:
        """Opens a picture. Returns it with its label, or with NO_LABEL if it has none."""
        return open_picture(io.BytesIO(self._archive.read(name))), self._labels.get(name, NO_LABEL)


def _labels(archive: zipfile.ZipFile) -> dict[str, int]:
    labels = dict(json.loads(archive.read(LABELS))["labels"] or [])
    if not all(type(label) is int and label >= 0 for label in labels.values()):
        raise ValueError("a label is not a number of a class")
    return labels
