"""Images of the user: all kinds that are read, and all kinds that are refused."""

import io
import os
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets
import run_lib
from configs.ddpm import custom
from core.errors import UserError
from images import local
from metrics import statistics
from sampling.late_start import DataGaussian


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def config(photos):
    config = custom.get_config()
    config.data.update(path=str(photos), image_size=4, held_out=0.0, cache_dir=str(photos.parent / "decoded"))
    return config


def picture(level=100, size=(6, 6), mode="RGB"):
    return Image.new(mode, size, level if mode == "L" else (level, 2 * level, 7))


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_pictures_at_any_depth_are_read_in_the_order_of_their_names(config, photos):
    """Catches a subfolder or an extension that is skipped, and an order that depends on the file system."""
    kinds = {"b/c/d/deep.webp": "WEBP", "a.PNG": "PNG", "b/x.jpg": "JPEG", "b/y.JpEg": "JPEG", "c d/ü 猫.png": "PNG"}
    for i, (name, form) in enumerate(kinds.items()):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture(20 * i).save(photos / name, form, **({"lossless": True} if form == "WEBP" else {}))
    (photos / "readme.txt").write_text("no picture")
    (photos / ".hidden.png").write_text("no picture")
    images, labels = datasets.load(config, "train")
    assert images.shape == (5, 4, 4, 3) and labels is None
    np.testing.assert_allclose(images[:, 2, 2, 0], [20, 0, 40, 60, 80], atol=2)  # JPEG is not exact


def test_class_folders_are_labels(config, photos):
    """Catches labels in another order, and labels from the wrong level of folders."""
    for name in ("dogs/1.png", "cats/old/2.png", "cats/1.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(photos / name)
    assert datasets.load(config, "train").labels.tolist() == [0, 0, 1]
    picture().save(photos / "stray.png")
    assert datasets.load(config, "train").labels is None


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPG", "a", "a.txt", "a.png.bak", "a.heic", "a.png/b.dat"])
@pytest.mark.parametrize("form", ["JPEG", "PPM", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_content_decides_and_not_the_name(config, photos, name, form):
    """Catches pictures with an unusual extension that are left out of training without a message."""
    (photos / name).parent.mkdir(exist_ok=True)
    picture().save(photos / name, form)
    picture().save(photos / "z.png")
    images = datasets.load(config, "train").images
    np.testing.assert_allclose(images[0], images[1], atol=6)


def test_what_is_no_image_is_named_before_decoding(config, photos, capsys):
    """Catches files that are left out of training without a message, and a message that only the first run prints."""
    picture().save(photos / "a.png")
    (photos / "b.txt").write_text("no picture")
    (photos / "__MACOSX").mkdir()
    picture().save(photos / "__MACOSX/c.png")
    (photos / "empty").mkdir()
    for _ in range(2):
        assert len(datasets.load(config, "train").images) == 1
        expected = "ignored: 1 *.txt ('b.txt'), 1 empty ('empty'), 1 hidden ('__MACOSX')"
        assert capsys.readouterr().out == f"{photos}: {expected}\n"


def test_folders_of_splits(config, photos, capsys):
    """Catches test pictures that are used for training, and a validation split that is dropped without a message."""
    levels = {"Train/cat/1": 10, "Train/dog/2": 20, "test/dog/3": 30, "valid/cat/4": 40, "stray": 50}
    for name, level in levels.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture(level).save(photos / f"{name}.png")
    train = datasets.load(config, "train")
    expected = "folders of splits: outside 1 (not used), test 1, train 2, validation 1 (not used)"
    assert capsys.readouterr().out == f"{photos}: pictures in {expected}\n"
    test = datasets.load(config, "test")
    assert (train.images[:, 0, 0, 0].tolist(), train.labels.tolist()) == ([10, 20], [0, 1])
    assert (test.images[:, 0, 0, 0].tolist(), test.labels.tolist()) == ([30], [1])
    (photos / "test/dog/3.png").unlink()
    assert datasets.load(config, "test").images[:, 0, 0, 0].tolist() == [40]
    (photos / "valid/cat/4.png").unlink()
    (photos / "stray.png").unlink()
    with pytest.raises(UserError, match="no test split: data.held_out=0"):
        datasets.load(config, "test")
    assert datasets.load(config, "train").labels.tolist() == [0, 1]


def test_reasons_are_counted(config, photos):
    """Catches a message about one broken picture that does not count those with other errors."""
    for i in range(3):
        (photos / f"{i}.heic").write_bytes(HEIC)
    animated("GIF")(photos / "m.gif")
    with pytest.raises(UserError, match=r"4 of 4 .*'0.heic': HEIC .*\(3 of this kind\); 'm.gif': holds 2 frames"):
        datasets.load(config, "train")


# Unusable files by name: a function that creates the file, and a pattern for the reason in the error message.


def animated(form):
    return lambda path: picture(1).save(path, form, save_all=True, append_images=[picture(90)])


def write(content):
    return lambda path: path.write_bytes(content)


def cut(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    content = encoded(noise, form)
    return write(content[: len(content) // 2])


def bomb(path):
    """Writes a PNG whose header declares 50,000 x 50,000 pixels."""
    content = bytearray(encoded(picture()))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    path.write_bytes(content)


HEIC = b"\0\0\0\x18ftypheic" + bytes(40)
REFUSED = {
    "empty.png": (write(b""), "not a readable picture"),
    "text.jpg": (write(b"<html>404</html>"), "not a readable picture"),
    "cut.png": (cut("PNG"), "truncated"),
    "cut.jpg": (cut("JPEG"), "truncated"),
    "cut.webp": (cut("WEBP"), "."),
    "bomb.png": (bomb, "."),
    "moves.png": (animated("PNG"), "holds 2 frames"),
    "moves.webp": (animated("WEBP"), "holds 2 frames"),
    "moves.gif": (animated("GIF"), "holds 2 frames"),
    "gif.png": (animated("GIF"), "holds 2 frames"),
    "pages.tif": (animated("TIFF"), "holds 2 frames"),
    "scan.TIFF": (write(b"II*\0"), "not a readable picture"),
    "phone.HEIC": (write(HEIC), "HEIC is not read; convert it to PNG or JPEG"),
    "phone": (write(HEIC), "HEIC is not read; convert it to PNG or JPEG"),
    "phone.jpg": (write(HEIC), "HEIC is not read; convert it to PNG or JPEG"),
    "dangling.png": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "self.png": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "loop": (lambda path: path.symlink_to(path.parent), "a link to a folder that contains it"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "猫\n.png": (write(b"?"), "not a readable picture"),
    os.fsdecode(b"latin\xe9.png"): (write(b"?"), "not a readable picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_picture_is_named_and_counted(config, photos, capsys, name):
    """Catches silently dropped images, a traceback, endless recursion, and a message of several lines."""
    create, reason = REFUSED[name]
    picture().save(photos / "good.png")
    create(photos / name)
    with pytest.raises(UserError, match=rf"1 of 2 pictures cannot be used.*{reason}.*skip_bad=true") as error:
        datasets.load(config, "train")
    assert "\n" not in str(error.value) and repr(name) in str(error.value)
    config.data.skip_bad = True
    assert len(datasets.load(config, "train").images) == 1
    assert "1 of 2 pictures cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [False, True])
def test_file_or_folder_without_permission_is_named(config, photos, folder):
    """Catches a folder without permission that is silently skipped, as os.walk does."""
    picture().save(photos / "good.png")
    locked = photos / "locked"
    locked.mkdir() if folder else picture().save(locked := photos / "locked.png")
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        pytest.skip("root can read every file")
    with pytest.raises(UserError, match="1 of 2 .*'locked.*Permission denied"):
        datasets.load(config, "train")


def test_unreadable_folder_is_named_when_tests_run_as_root(config, photos, monkeypatch):
    """Catches the same for root, for whom permissions have no effect: os.scandir is patched to raise the error."""
    picture().save(photos / "good.png")
    (photos / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for split, held_out in (("train", 0.0), ("test", 0.99)):
        config.data.held_out = held_out
        with pytest.raises(UserError, match="'locked': Permission denied"):
            datasets.load(config, split)


def test_repaired_picture_is_decoded_again(config, photos):
    """Catches an error that is cached after its cause is gone."""
    picture(10).save(photos / "a.png")
    (photos / "b.png").write_bytes(b"?")
    with pytest.raises(UserError, match="b.png"):
        datasets.load(config, "train")
    picture(20).save(photos / "b.png")
    assert datasets.load(config, "train").images[:, 0, 0, 0].tolist() == [10, 20]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images; images are read from a folder or .zip of pictures"),
        (["a.txt", "b.csv", "c.txt"], r"ignored: 1 \*.csv \('b.csv'\), 2 \*.txt \('a.txt'\)"),
    ],
)
def test_folder_without_pictures_is_an_error(config, photos, names, message):
    """Catches an empty training set, and a message that omits the ignored files."""
    for name in names:
        (photos / name).touch()
    with pytest.raises(UserError, match=message):
        datasets.load(config, "train")


def test_no_cache_is_left_if_all_pictures_fail(config, photos):
    """Catches a temporary disk error that is cached forever, and an empty array that cannot be mapped."""
    config.data.skip_bad = True
    (photos / "a.png").write_bytes(b"?")
    with pytest.raises(UserError, match="1 of 1 pictures"):
        datasets.load(config, "train")
    assert [path.name for path in (photos.parent / "decoded").glob("*/*")] == ["lock"]


def test_single_picture_is_a_training_split_without_a_test_split(config, photos):
    """Catches an empty test split that is returned without an error."""
    picture().save(photos / "only.png")
    assert datasets.load(config, "train").images.shape == (1, 4, 4, 3)
    with pytest.raises(UserError, match="no test split: data.held_out=0"):
        datasets.load(config, "test")
    config.data.held_out = 0.01
    with pytest.raises(UserError, match="test split holds no images"):
        datasets.load(config, "test")


@given(
    st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "WEBP"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_pictures_give_an_error_of_one_line(tmp_path_factory, seed, form, place, garbage):
    """Catches a traceback: Pillow raises SyntaxError, struct.error and others for damaged files."""
    content = bytearray(
        encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)), form)
    )
    start = int(place * len(content))
    content[start : start + len(garbage)] = garbage
    config = custom.get_config()
    root = tmp_path_factory.mktemp("fuzz")
    config.data.update(path=str(root), image_size=4, held_out=0.0, cache_dir=str(root / ".decoded"))
    (root / "a.png").write_bytes(content)
    try:
        assert datasets.load(config, "train").images.shape == (1, 4, 4, 3)
    except UserError as error:
        assert "1 of 1 pictures cannot be used" in str(error) and "\n" not in str(error)


def test_held_out_split_is_stable(config, photos):
    """Catches a test image that becomes a training image when others are added or accents are stored as NFD."""
    config.data.held_out = 0.3

    def split_of_each():
        names = sorted(path.name for path in photos.iterdir())
        return {name: local.is_held_out(name, 0.3) for name in names}

    def levels(split):
        return datasets.load(config, split).images[:, 0, 0, 0].tolist()

    for i in range(20):
        picture(i).save(photos / f"{i}.png")
    before = split_of_each()
    assert 0 < sum(before.values()) < 20
    train = levels("train")
    test = levels("test")
    assert sorted(train + test) == list(range(20))
    for i in range(20, 40):
        picture(i).save(photos / f"{i}.png")
    assert before.items() <= split_of_each().items()
    assert set(levels("train")) > set(train) and set(levels("test")) > set(test)
    composed = "é.png"
    assert local.is_held_out(composed, 0.5) == local.is_held_out(unicodedata.normalize("NFD", composed), 0.5)


def test_held_out_share_is_met():
    """Catches a hash that is not uniform: the share must be 0.1 within 5 standard deviations."""
    assert abs(sum(local.is_held_out(f"{i}.jpg", 0.1) for i in range(20_000)) - 2000) < 5 * 42.4


ARRAYS = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "images", "labelled"),
    [
        ("a.npy", ARRAYS, False),
        ("a.npy", ARRAYS[..., 0], False),
        ("a.npy", ARRAYS[..., :1], False),
        ("a.npz", ARRAYS, False),
        ("a.npz", ARRAYS, True),
        ("x-images-idx3-ubyte", ARRAYS[..., 0], False),
    ],
)
def test_arrays_are_split_without_loss(config, tmp_path, name, images, labelled):
    """Catches swapped channels, labels of other images, and an image in both splits or in none."""
    path = tmp_path / name
    labels = np.arange(9) % 3
    if name.endswith("npy"):
        np.save(path, images)
    elif name.endswith("npz"):
        np.savez(path, **({"images": images, "labels": labels} if labelled else {"arr_0": images}))
    else:
        header = b"\0\0\x08\x03" + np.array(images.shape, ">i4").tobytes()
        path.write_bytes(header + images.tobytes())
    config.data.update(path=str(path), held_out=0.4, num_channels=3)
    splits = [datasets.load(config, split) for split in ("train", "test")]
    test = np.array([local.is_held_out(str(i), 0.4) for i in range(9)])
    expected = np.broadcast_to(images.reshape(9, 4, 4, -1), (9, 4, 4, 3))
    for (found, found_labels), chosen in zip(splits, (~test, test), strict=True):
        np.testing.assert_array_equal(found, expected[chosen])
        assert (found_labels is None) if not labelled else (found_labels == labels[chosen]).all()


def save_npz(**arrays):
    return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "create", "message"),
    [
        (
            "a.npy",
            lambda path: np.save(path, ARRAYS.astype(np.float32)),
            r"float32 \[9, 4, 4, 3\], but images are uint8",
        ),
        ("a.npy", lambda path: np.save(path, ARRAYS[..., :2]), "but images are uint8"),
        ("a.npy", lambda path: np.save(path, np.zeros((9, 3, 6, 5), np.uint8)), r"transpose\(0, 2, 3, 1\)"),
        ("a.npy", lambda path: np.save(path, np.zeros((6, 5, 3), np.uint8)), "uint8 .6, 5, 3., which looks like one"),
        ("a.npy", lambda path: np.save(path, np.zeros((3, 6, 5), np.uint8)), "uint8 .3, 6, 5., which looks like one"),
        ("a.npz", save_npz(x=np.zeros((6, 5, 4), np.uint8)), r"uint8 \[6, 5, 4\], which looks like one"),
        ("a.npy", lambda path: np.save(path, ARRAYS[:, :0]), "have no pixels"),
        ("a.npy", lambda path: np.save(path, ARRAYS[:0]), "holds no images"),
        ("a.npy", lambda path: np.save(path, np.array([None])), "not a readable .npy"),
        ("a.npy", write(b"\x93NUMPY"), "not a readable .npy"),
        ("a.npz", write(b"PK"), "not a readable .npz"),
        ("a.npz", save_npz(x=ARRAYS, y=ARRAYS), 'needs an array "images", or exactly one array; it holds x, y'),
        ("a.npz", save_npz(images=ARRAYS, labels=np.arange(8)), "one for each of 9 images"),
        ("a.npz", save_npz(images=ARRAYS, labels=np.full(9, 0.5)), "labels must be integers"),
        ("a-images-idx3-ubyte", write(b"\0\0\x09"), "not an IDX file"),
        ("a.tar", write(b""), "unsupported file type"),
        ("a.zip", lambda path: zipfile.ZipFile(path, "w").writestr("a.png", "x"), "1 of 1 pictures cannot be used"),
        ("a.npz", lambda path: zipfile.ZipFile(path, "w").writestr("a.png", "x"), "'a.png' in it is not an array"),
        ("a.png", picture().save, "first bytes of a picture"),
    ],
)
def test_unusable_array_is_an_error_of_one_line(config, tmp_path, name, create, message):
    """Catches a traceback, and an array that is converted or cut without an error."""
    create(tmp_path / name)
    config.data.path = str(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        datasets.load(config, "train")
    assert "\n" not in str(error.value)


def test_path_that_is_a_link_to_itself_is_an_error_of_one_line(config, tmp_path):
    """Catches a RuntimeError of pathlib, whichever function uses the path first."""
    (tmp_path / "loop").symlink_to("loop")
    config.data.path = str(tmp_path / "loop")
    assert datasets.stamp(config, "train") is None
    with pytest.raises(UserError, match="no .*loop: set --config.data.path"):
        datasets.load(config, "train")


def test_tilde_is_the_home_folder(config, photos, monkeypatch):
    """Catches --config.data.path=~/photos that is not expanded. Shells do not expand ~ after an equals sign."""
    monkeypatch.setenv("HOME", str(photos.parent))
    picture().save(photos / "a.png")
    config.data.path = "~/photos"
    assert len(datasets.load(config, "train").images) == 1


def test_statistics_use_every_image_once_and_unflipped(config, tmp_path):
    """Catches a last batch that is dropped or padded with zeros, and training flips in the mean of the images."""
    images = np.random.default_rng(1).integers(0, 256, (23, 4, 4, 3), np.uint8)
    images[:, :, :2] //= 4
    np.save(tmp_path / "a.npy", images)
    config.data.update(path=str(tmp_path / "a.npy"), random_flip=True)
    config.assets_dir = str(tmp_path)
    config.model.update(ch_mult=(1,), attn_resolutions=())
    config.eval.update(enable_fid=False, batch_size=5)
    run_lib.fid_stats(config)
    gaussian = DataGaussian.load(statistics.stats_path(config, "gaussian"))
    flat = images.reshape(23, -1) / 127.5 - 1
    np.testing.assert_allclose(gaussian.mean, flat.mean(axis=0), atol=1e-6)
    covariance = (gaussian.eigenvectors * gaussian.eigenvalues) @ gaussian.eigenvectors.T
    np.testing.assert_allclose(covariance, np.cov(flat, rowvar=False), atol=1e-6)
    np.save(tmp_path / "a.npy", images[:1])
    with pytest.raises(UserError, match="a covariance needs at least 2"):
        run_lib.fid_stats(config)
