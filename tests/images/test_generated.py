import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from images import generated
from images.generated import open_images

SHAPE = (4, 5, 3)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (7, *SHAPE), np.uint8)


def read(path, shape=SHAPE):
    count, batches = open_images(path, shape)
    found = np.concatenate([batch for batch, _ in batches])
    assert len(found) == count
    return found


def test_folder_and_npz_hold_the_same(images, tmp_path, monkeypatch):
    """Files out of order, a chunk lost, other files taken for images."""
    monkeypatch.setattr(generated, "CHUNK", 3)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "grid.txt").write_text("no image")
    np.savez(tmp_path / "ours.npz", images=images, labels=np.zeros(7))
    np.savez(tmp_path / "theirs.npz", images)
    for path in (tmp_path, tmp_path / "ours.npz", tmp_path / "theirs.npz"):
        np.testing.assert_array_equal(read(path), images)


def test_grey_and_jpg_files(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (4, 5), np.uint8)).save(tmp_path / "a.JPG")
    assert read(tmp_path, (4, 5, 1)).shape == (1, 4, 5, 1)
    with pytest.raises(UserError, match="a L image"):
        read(tmp_path)


def test_what_is_not_such_images_is_named(images, tmp_path):
    """A resize, a change of mode or a wrong array, made in silence."""
    empty = tmp_path / "empty"
    empty.mkdir()
    np.savez(tmp_path / "float.npz", images=images / 255)
    np.savez(tmp_path / "two.npz", a=images, b=images)
    Image.fromarray(images[0]).resize((9, 9)).save(tmp_path / "large.png")
    (empty.parent / "broken").mkdir()
    (tmp_path / "broken/b.png").write_bytes(b"\x89PNG nonsense")
    for path, says in [
        (empty, "holds no images"),
        (tmp_path / "float.npz", "expected uint8"),
        (tmp_path / "two.npz", "one called images"),
        (tmp_path, "large.png"),
        (tmp_path / "broken", "not a readable image"),
    ]:
        with pytest.raises(UserError, match=says):
            read(path)
