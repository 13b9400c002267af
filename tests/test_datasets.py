"""Data sets by name, user files, batches, and the conversion between pixels and the network's range."""

import gzip
import hashlib
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import datasets
from configs.ddpm import cifar10, custom, fashion_mnist, mnist
from core.errors import UserError


def test_digits_are_scikit_learns(config):
    """Catches grey levels 0..16 that are not scaled to 0..255, and lost images."""
    images, labels = datasets.load(config, "train")
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_for_the_classifier_do_not_overlap(config):
    """Catches a held-out accuracy that is measured on training images."""
    train, test = datasets.load_labelled(config)
    assert (len(train.images), len(test.images)) == (1438, 359)
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_missing_split_is_named(config):
    """Catches a traceback, or the training split in place of the test split."""
    with pytest.raises(UserError, match="digits has no test split"):
        datasets.load(config, "test")


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def idx_config(tmp_path, rng):
    config = mnist.get_config()
    config.data.update(path=str(tmp_path), cache_dir=str(tmp_path / "decoded"))
    images = rng.integers(0, 256, (5, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(5, dtype=np.uint8))))
    return config, images


def test_idx_files_are_read_plain_and_gzipped(idx_config):
    """Catches big-endian sizes that are read as little-endian, and rows and columns swapped."""
    config, images = idx_config
    split = datasets.load(config, "train")
    np.testing.assert_array_equal(split.images[..., 0], images)
    assert split.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:3],
        lambda content: b"",
        lambda content: b"\x89PNG" + content[4:],
        lambda content: content[:4] + b"\xff" * 12 + content[16:],
        lambda content: idx_bytes(np.zeros((3, 28, 28), np.uint8)),
    ],
)
def test_damaged_idx_file_is_one_line(idx_config, tmp_path, damage):
    """Catches an incomplete download that leads to a traceback, or to images without labels."""
    config, _ = idx_config
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        datasets.load(config, "train")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_damaged_gzip_is_one_line(idx_config, tmp_path):
    """Catches a traceback of gzip."""
    config, _ = idx_config
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="labels-idx1"):
        datasets.load(config, "train")


def test_message_about_missing_files_says_what_to_do(tmp_path):
    """Catches a message without the field to set or the command to run."""
    config = fashion_mnist.get_config()
    config.data.path = str(tmp_path / "none")
    prepare = "--mode=prepare --config=configs/ddpm/fashion_mnist.py --config.data.path="
    with pytest.raises(UserError, match=f"none: set --config.data.path.*dataset-fashion-mnist.*{prepare}"):
        datasets.load(config, "train")
    with pytest.raises(UserError, match="custom needs --config.data.path"):
        datasets.load(custom.get_config(), "train")


def test_digits_refuse_a_path(config, tmp_path):
    """Catches a path that is ignored without a message."""
    config.data.path = str(tmp_path)
    with pytest.raises(UserError, match="custom.py"):
        datasets.load(config, "train")


def test_idx_files_without_the_other_split_or_labels(idx_config, tmp_path):
    """Catches a missing test split that is reported as a broken file, and an error for images without labels."""
    config, _ = idx_config
    with pytest.raises(UserError, match="no t10k-images.*the test split is missing"):
        datasets.load(config, "test")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert datasets.load(config, "train").labels is None


def test_fashion_mnist_of_debian(tmp_path):
    """Catches a lost pixel or a changed order in the decoder, with the real files where they are installed."""
    config = fashion_mnist.get_config()
    config.data.cache_dir = str(tmp_path)
    try:
        split = datasets.load(config, "train")
    except UserError as missing:
        pytest.skip(str(missing))
    assert split.images.shape == (60000, 28, 28, 1)
    assert np.bincount(split.labels).tolist() == [6000] * 10
    with gzip.open(Path(config.data.path) / "train-images-idx3-ubyte.gz") as file:
        assert file.read()[16:] == split.images.tobytes()


def test_statistics_of_other_images_have_another_name(tmp_path):
    """Catches scores against the statistics of another folder, or of another part of the same folder."""
    config = custom.get_config()
    names = set()
    for path, held_out, channels in [("a", 0.1, 3), ("b", 0.1, 3), ("a", 0.2, 3), ("a", 0.1, 1)]:
        config.data.update(path=path, held_out=held_out, num_channels=channels)
        names.add(datasets.slug(config))
    assert len(names) == 4
    assert datasets.slug(cifar10.get_config()) == "cifar10_32"


def numbered(count):
    """Returns images with their index in the left column and 0 elsewhere."""
    images = np.zeros((count, 8, 8, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    return images


def test_stream_is_a_function_of_seed_and_step(config):
    """Catches a resumed run that gets other batches than the run without interruption."""
    images = numbered(20)
    whole = list(itertools.islice(datasets.train_batches(images, config, 0), 7))
    resumed = list(itertools.islice(datasets.train_batches(images, config, 4), 3))
    np.testing.assert_array_equal(whole[4:], resumed)
    config.seed += 1
    assert (next(datasets.train_batches(images, config, 0)) != whole[0]).any()


def test_stream_of_digits_is_the_one_that_made_the_results(config):
    """Catches an order or a method of shuffling that differs from that of the published results."""
    config.training.batch_size = 128
    batches = datasets.train_batches(datasets.load(config, "train").images, config, 5)
    digest = hashlib.sha256(b"".join(batch.tobytes() for batch in itertools.islice(batches, 40)))
    assert digest.hexdigest().startswith("fc233ee79b80223a")


def be_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_processes_share_the_batch_of_one(config, count, flip, monkeypatch):
    """Catches images that two processes get or none, and flips that depend on the number of processes."""
    config.data.random_flip = flip
    images = numbered(20)
    whole = list(itertools.islice(datasets.train_batches(images, config, 3), 6))
    parts = []
    for i in range(count):
        be_process(monkeypatch, i, count)
        parts.append(list(itertools.islice(datasets.train_batches(images, config, 3), 6)))
    np.testing.assert_array_equal([np.concatenate(rows) for rows in zip(*parts, strict=True)], whole)


def test_batch_that_processes_cannot_share_evenly(config, monkeypatch):
    """Catches rows that are lost in the division."""
    be_process(monkeypatch, 1, 3)
    with pytest.raises(ValueError, match="8 does not divide among 3"):
        datasets.train_batches(numbered(20), config, 0)


@pytest.mark.parametrize("read", [0, 3])
def test_only_one_batch_is_prefetched(config, read):
    """Catches batches that accumulate in memory while the device is busy."""

    class Counting(np.ndarray):
        fetched = 0

        def __getitem__(self, indices):
            Counting.fetched += isinstance(indices, np.ndarray)
            return np.asarray(self)[indices]

    stream = datasets.train_batches(numbered(20).view(Counting), config, 0)
    list(itertools.islice(stream, read))
    time.sleep(0.2)
    assert Counting.fetched <= read + 1


def test_spread_is_even_and_has_all_images_if_there_are_fewer():
    """Catches a subset of only the first images, a repeated image, and an index out of range."""
    images = np.arange(100)
    np.testing.assert_array_equal(datasets.spread(images, 4), [0, 33, 66, 99])
    np.testing.assert_array_equal(datasets.spread(images, 100), images)
    np.testing.assert_array_equal(datasets.spread(images, 1000), images)


def test_each_epoch_sees_each_image_once_in_its_own_order(config):
    """Catches sampling with replacement, and the same order in every epoch."""
    batches = itertools.islice(datasets.train_batches(numbered(20), config, 0), 5)
    seen = np.concatenate(list(batches))[:, 0, 0, 0]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert (seen[:20] != seen[20:]).any()


def test_half_of_the_images_are_flipped_left_to_right(config):
    """Catches a flip along the wrong axis or of the whole batch, and a flip although random_flip is false."""
    config.training.batch_size = 200
    images = np.full((200, 8, 8, 1), 0, np.uint8)
    images[:, :, 0] = 255
    config.data.random_flip = True
    batch = next(datasets.train_batches(images, config, 0))
    flipped = batch[:, 0, 7, 0] == 255
    np.testing.assert_array_equal(batch[flipped], images[flipped][:, :, ::-1])
    np.testing.assert_array_equal(batch[~flipped], images[~flipped])
    assert 60 < flipped.sum() < 140
    config.data.random_flip = False
    np.testing.assert_array_equal(next(datasets.train_batches(images, config, 0)), images)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 30])
def test_in_order_gives_each_image_once(batch_size):
    """Catches a last, incomplete batch that is dropped or counted with its padding."""
    images = numbered(20)
    batches = list(datasets.in_order(images, batch_size))
    assert {len(batch) for batch, _ in batches} == {batch_size}
    np.testing.assert_array_equal(np.concatenate([batch[:count] for batch, count in batches]), images)


@pytest.mark.parametrize("centered", [True, False])
def test_range_round_trip(centered):
    """Catches a grey level that changes in the round trip, and a value out of range that wraps around."""
    pixels = np.arange(256, dtype=np.uint8)
    x = datasets.to_network_range(jnp.asarray(pixels), centered)
    assert (float(x[0]), float(x[-1])) == ((-1, 1) if centered else (0, 1))
    np.testing.assert_array_equal(datasets.to_uint8(x, centered), pixels)
    np.testing.assert_array_equal(datasets.to_uint8(jnp.array([-9.0, 9.0]), centered), [0, 255])
