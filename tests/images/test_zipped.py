"""Zip files of pictures: labels, splits, and damaged files."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from configs.ddpm import custom
from core.errors import UserError
from images.generated import open_images


def write_zip(path: Path, labels: object, count: int = 6) -> np.ndarray:
    """Writes pictures as EDM's tool does, and returns them in the order of their names."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for i, picture in enumerate(pictures):
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "png")
            archive.writestr(f"00000/img{i:08d}.png", content.getvalue())
        archive.writestr("__MACOSX/img.png", b"no picture")
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return pictures


@pytest.fixture
def config(tmp_path):
    config = custom.get_config()
    config.data.update(path=str(tmp_path / "x.zip"), image_size=4, held_out=0, cache_dir=str(tmp_path / "decoded"))
    return config


def test_pictures_and_labels_of_a_zip(config, tmp_path):
    """Catches labels of other pictures, another order, and members that are no pictures."""
    pictures = write_zip(tmp_path / "x.zip", [[f"00000/img{i:08d}.png", i % 3] for i in reversed(range(6))])
    split = datasets.load(config, "train")
    np.testing.assert_array_equal(split.images, pictures)
    np.testing.assert_array_equal(split.labels, [0, 1, 2, 0, 1, 2])
    opened = open_images(tmp_path / "x.zip", (4, 4, 3))
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in opened.batches]), pictures)


def test_splits_of_a_zip_without_labels(config, tmp_path):
    """Catches pictures that are in both splits, or in none."""
    pictures = write_zip(tmp_path / "x.zip", None)
    config.data.held_out = 0.5
    parts = [datasets.load(config, split) for split in ("train", "test")]
    assert parts[0].labels is None
    together = sorted(image.tobytes() for part in parts for image in part.images)
    assert together == sorted(image.tobytes() for image in pictures) and len(parts[1].images)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 damaged", "not a readable zip file"),
        ([["a", "cat"]], "the number of a class"),
        (3, "dataset.json"),
    ],
)
def test_damaged_zips_end_in_one_line(config, tmp_path, content, says):
    """Catches a traceback, and labels that are not classes."""
    if isinstance(content, bytes):
        (tmp_path / "x.zip").write_bytes(content)
    else:
        write_zip(tmp_path / "x.zip", content)
    with pytest.raises(UserError, match=says):
        datasets.load(config, "train")
