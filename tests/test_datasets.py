import gzip
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import datasets
from configs.ddpm import cifar10, fashion_mnist, mnist
from errors import UserError


def test_digits_are_scikit_learns(config):
    """Grey levels 0..16 must fill 0..255 and no image may be lost."""
    images, labels = datasets.load(config, "train")
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_for_the_classifier_do_not_overlap(config):
    """Held-out accuracy measured on images that were trained on."""
    train, test = datasets.load_labelled(config)
    assert (len(train.images), len(test.images)) == (1438, 359)
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_split_that_a_data_set_lacks_is_named(config):
    with pytest.raises(UserError, match="digits has no test split"):
        datasets.load(config, "test")


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def idx_config(tmp_path, rng):
    config = mnist.get_config()
    config.data.data_dir = str(tmp_path)
    images = rng.integers(0, 256, (5, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(5, dtype=np.uint8))))
    return config, images


def test_idx_files_are_read_plain_and_gzipped(idx_config):
    """Big-endian sizes read little-endian, or rows and columns swapped."""
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
    """A cut download that ends in a reshape traceback, or in images without labels."""
    config, _ = idx_config
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        datasets.load(config, "train")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_damaged_gzip_is_one_line(idx_config, tmp_path):
    config, _ = idx_config
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="labels-idx1"):
        datasets.load(config, "train")


def test_missing_files_say_what_to_do(tmp_path):
    config = fashion_mnist.get_config()
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"data_dir.*dataset-fashion-mnist"):
        datasets.load(config, "train")


def test_fashion_mnist_of_debian():
    """The real files, where they are installed."""
    try:
        split = datasets.load(fashion_mnist.get_config(), "train")
    except UserError as missing:
        pytest.skip(str(missing))
    assert split.images.shape == (60000, 28, 28, 1)
    assert np.bincount(split.labels).tolist() == [6000] * 10


def test_decoded_arrays_are_mapped_and_checked(tmp_path, rng):
    """Images of another size or type fed to the network; a whole data set read into memory."""
    config = cifar10.get_config()
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="put a uint8 array"):
        datasets.load(config, "train")
    path = tmp_path / "cifar10_32" / "train.npy"
    path.parent.mkdir()
    images = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    np.save(path, images)
    split = datasets.load(config, "train")
    assert isinstance(split.images, np.memmap)
    np.testing.assert_array_equal(split.images, images)
    for wrong in (images[:, :16], images.astype(np.float32), images[:0]):
        np.save(path, wrong)
        with pytest.raises(UserError, match=r"asks for uint8 \[32, 32, 3\]|no images"):
            datasets.load(config, "train")


def numbered(count):
    """Images that each hold their own index in the left column and nothing elsewhere."""
    images = np.zeros((count, 8, 8, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    return images


def test_stream_is_a_function_of_seed_and_step(config):
    """A resumed run that sees other images than the run it resumes."""
    images = numbered(20)
    whole = list(itertools.islice(datasets.train_batches(images, config, 0), 7))
    resumed = list(itertools.islice(datasets.train_batches(images, config, 4), 3))
    np.testing.assert_array_equal(whole[4:], resumed)
    config.seed += 1
    assert (next(datasets.train_batches(images, config, 0)) != whole[0]).any()


def test_each_epoch_sees_each_image_once_in_its_own_order(config):
    """Sampling with replacement, or the same order in every epoch."""
    batches = itertools.islice(datasets.train_batches(numbered(20), config, 0), 5)
    seen = np.concatenate(list(batches))[:, 0, 0, 0]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert (seen[:20] != seen[20:]).any()


def test_half_of_the_images_are_flipped_left_to_right(config):
    """A flip of the wrong axis, of the whole batch together, or of data that must not be flipped."""
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
    """A last part-batch that is dropped or counted with its padding."""
    images = numbered(20)
    batches = list(datasets.in_order(images, batch_size))
    assert {len(batch) for batch, _ in batches} == {batch_size}
    np.testing.assert_array_equal(np.concatenate([batch[:count] for batch, count in batches]), images)


@pytest.mark.parametrize("centered", [True, False])
def test_range_round_trip(centered):
    """A pixel that does not come back, or a value out of range that wraps around."""
    pixels = np.arange(256, dtype=np.uint8)
    x = datasets.to_network_range(jnp.asarray(pixels), centered)
    assert (float(x[0]), float(x[-1])) == ((-1, 1) if centered else (0, 1))
    np.testing.assert_array_equal(datasets.to_uint8(x, centered), pixels)
    np.testing.assert_array_equal(datasets.to_uint8(jnp.array([-9.0, 9.0]), centered), [0, 255])
