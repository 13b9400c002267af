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
    opened = open_images(path, shape)
    found = np.concatenate([batch for batch, _ in opened.batches])
    assert len(found) == opened.count
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
    np.save(tmp_path / "array.npy", images)
    for path in (tmp_path, tmp_path / "ours.npz", tmp_path / "theirs.npz", tmp_path / "array.npy"):
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


def test_all_pictures_are_scored_or_none(tmp_path, rng, capsys):
    """Catches a score of only some pictures, because others have unknown extensions."""
    forms = {"a.png": "PNG", "b.bmp": "BMP", "c": "TIFF", "d.dat": "PPM", "sub/e.webp": "WEBP", "x.png/f.png": "PNG"}
    for name, form in forms.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, SHAPE, np.uint8)).save(tmp_path / name, form, lossless=True)
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "log.txt").write_text("loss 0.1")
    assert len(read(tmp_path)) == len(forms)
    assert "ignored: 1 *.txt ('log.txt'), 1 hidden ('._a.png')" in capsys.readouterr().out
    frames = [Image.fromarray(rng.integers(0, 256, SHAPE, np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(UserError, match="2 of 8 .*'moves.gif': holds 3 frames.*'phone.heic': HEIC is not read"):
        open_images(tmp_path, SHAPE)


def test_every_split_of_a_folder_is_scored(tmp_path, rng):
    """Catches a score of one split where the whole folder was given."""
    for split in ("train", "test", "val"):
        (tmp_path / split).mkdir()
        Image.fromarray(rng.integers(0, 256, SHAPE, np.uint8)).save(tmp_path / split / "1.png")
    assert len(read(tmp_path)) == 3


def test_a_picture_lost_after_the_check_is_an_error(tmp_path, rng):
    """Catches a picture that is left out without a message because it was deleted during the work."""
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, SHAPE, np.uint8)).save(tmp_path / f"{i}.png")
    opened = open_images(tmp_path, SHAPE)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="1 of 2 .*'1.png'"):
        list(opened.batches)


@pytest.mark.parametrize(
    ("picture", "shape"),
    [
        (Image.new("RGBA", (5, 4), (9, 9, 9, 255)), SHAPE),
        (Image.new("LA", (5, 4), (9, 255)), (4, 5, 1)),
        (Image.new("RGB", (5, 4), (9, 9, 9)), (4, 5, 1)),
        (Image.new("I;16", (5, 4), 9 * 257), (4, 5, 1)),
    ],
)
def test_colours_are_those_of_training(tmp_path, picture, shape):
    """Catches pictures that training reads and scoring refuses, although no information is lost."""
    picture.save(tmp_path / "a.png")
    assert (read(tmp_path, shape) == 9).all()


def test_colours_are_not_lost(tmp_path):
    """Catches colours that become grey without an error, so that other images are scored."""
    Image.new("RGB", (5, 4), (9, 9, 10)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="'a.png': a RGB image of 4 x 5 pixels"):
        read(tmp_path, (4, 5, 1))


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
        (tmp_path / "large", "1 of 1 .*'large.png': a RGB image of 9 x 9 pixels"),
        (tmp_path / "broken", "'b.png': not a readable picture .*all must be usable"),
        (tmp_path / "unread", "'c.gif': not a readable picture"),
    ]:
        with pytest.raises(UserError, match=message):
            read(path)
