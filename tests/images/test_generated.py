import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from images import generated
from images.decoded import Form, open_split
from images.generated import open_images
from images.local import source

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
    """Catches files out of order, a lost chunk, and other files that are read as images."""
    monkeypatch.setattr(generated, "CHUNK", 3)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "grid.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    np.savez(tmp_path / "ours.npz", images=images, labels=np.zeros(7))
    np.savez(tmp_path / "theirs.npz", images)
    for path in (tmp_path, tmp_path / "ours.npz", tmp_path / "theirs.npz"):
        np.testing.assert_array_equal(read(path), images)


def test_grey_and_jpg_files(tmp_path, rng):
    """Catches a grey .JPG that is not read, and a grey picture accepted as a colour picture."""
    Image.fromarray(rng.integers(0, 256, (4, 5), np.uint8)).save(tmp_path / "a.JPG")
    assert read(tmp_path, (4, 5, 1)).shape == (1, 4, 5, 1)
    with pytest.raises(UserError, match="a L image"):
        read(tmp_path)


def test_grey_array_may_lack_the_channel_axis(images, tmp_path):
    """Catches arrays that training accepts and scoring refuses."""
    np.save(tmp_path / "grey.npy", images[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "grey.npy", (4, 5, 1)), images[..., :1])


def test_scoring_and_training_read_a_folder_alike(tmp_path, rng):
    """Catches two readers that differ in orientation, subfolders, formats, hidden files or the order of pictures."""
    shape = (4, 4, 3)
    folder = tmp_path / "images"
    (folder / "b/deep").mkdir(parents=True)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    kinds = {"c.png": {}, "a.jpg": {"exif": rotated}, "b/deep/x.webp": {"lossless": True}, "b/.hidden.png": {}}
    for name, options in kinds.items():
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name, **options)
    training = open_split(
        source(folder, "train", 0.0), "train", form=Form(shape), folder=tmp_path / "decoded", skip_bad=False
    )
    assert len(training.images) == 3
    np.testing.assert_array_equal(read(folder, shape), training.images)


def test_unusable_images_are_refused_by_name(images, tmp_path):
    """Catches a resize, a colour conversion or a wrong array without an error."""
    empty = tmp_path / "empty"
    empty.mkdir()
    np.savez(tmp_path / "float.npz", images=images / 255)
    np.savez(tmp_path / "two.npz", a=images, b=images)
    np.save(tmp_path / "small.npy", images[:, :2])
    (tmp_path / "large").mkdir()
    Image.fromarray(images[0]).resize((9, 9)).save(tmp_path / "large/large.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/b.png").write_bytes(b"\x89PNG nonsense")
    (tmp_path / "unread").mkdir()
    (tmp_path / "unread/c.gif").touch()
    for path, message in [
        (empty, "holds no images"),
        (tmp_path / "float.npz", "images are uint8"),
        (tmp_path / "small.npy", r"expected uint8 \[N, 4, 5, 3\], got uint8 \[7, 2, 5, 3\]"),
        (tmp_path / "two.npz", 'needs an array "images"'),
        (tmp_path / "large", "large.png: a RGB image of 9 x 9 pixels"),
        (tmp_path / "broken", "not a readable image"),
        (tmp_path / "unread", "c.gif: .gif is not read"),
    ]:
        with pytest.raises(UserError, match=message):
            read(path)
