import numpy as np
import pytest

import datasets
from configs.ddpm import digits, fashion_mnist
from core import files
from core.errors import UserError
from models import classifier

DEFAULT = digits.get_config()


def test_saved_classifier_gives_the_same_features(tmp_path):
    """Catches weights stored under the wrong name or in another order, and training that learns nothing."""
    train_set, test_set = datasets.load_labelled(DEFAULT)
    trained = classifier.train(train_set, test_set, seed=0, num_images=40_000)
    assert trained.accuracy > 0.9
    classifier.save(tmp_path / "digits.npz", trained, (8, 8, 1))
    loaded = classifier.load(tmp_path / "digits.npz", (8, 8, 1))
    images = test_set.images[:16]
    np.testing.assert_array_equal(loaded.network.features(images), trained.network.features(images))
    assert loaded[1:] == trained[1:]


@pytest.mark.parametrize(("config", "least"), [(DEFAULT, 0.97), (fashion_mnist.get_config(), 0.90)])
def test_shipped_classifier_has_its_stored_accuracy(config, least, tmp_path):
    """Catches weights whose accuracy on the held-out images differs from the stored accuracy."""
    config.data.cache_dir = str(tmp_path)
    path = files.REPOSITORY / "assets/classifier" / f"{datasets.slug(config)}.npz"
    stored = classifier.load(path, datasets.image_shape(config))
    assert stored.accuracy >= least
    try:
        _, held_out = datasets.load_labelled(config)
    except UserError as missing:
        pytest.skip(str(missing))
    assert stored.num_held_out == len(held_out.images)
    assert classifier._accuracy(stored.network, held_out) == pytest.approx(stored.accuracy, abs=1e-3)


def test_damaged_classifier_file_is_named(tmp_path):
    """Catches a traceback of zipfile."""
    path = tmp_path / "broken.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="broken.npz"):
        classifier.load(path, (8, 8, 1))


def test_classifier_of_other_images_is_refused():
    """Catches a classifier of grey images applied to colour images, which gives a traceback from a convolution."""
    path = files.REPOSITORY / "assets/classifier/digits_8.npz"
    with pytest.raises(UserError, match=r"of shape \[8, 8, 1\], not \[8, 8, 3\]"):
        classifier.load(path, (8, 8, 3))
