import jax.numpy as jnp
import numpy as np
import pytest

import datasets
from core.errors import UserError
from metrics import labels
from metrics.labels import corrected_shares, label_scores, load_labeller


def test_label_scores_in_closed_form():
    """Catches a wrong base of the logarithm, a missing factor 1/2, and NaN for a label that never occurs."""
    found = label_scores(np.array([2, 2, 0, 0]), np.array([1, 1, 1, 1]))
    assert found.entropy == 1 and found.data_entropy == 2 and found.distance == 0.5
    assert label_scores(np.array([7]), np.array([7])).entropy == 0


def test_digits_are_labelled_by_the_shipped_classifier(config):
    """Catches outputs of another layer, padding that is counted, and a classifier used for another data set."""
    config.assets_dir = "assets"
    images, labels = datasets.load(config, "train")
    counts = load_labeller(config).count(jnp.asarray(images[:500]), 300)
    assert counts.sum() == 300
    assert np.abs(counts - np.bincount(labels[:300])).sum() < 12
    config.data.dataset = "cifar10"
    assert load_labeller(config) is None


def brightest_half(images):
    return np.asarray(images, float).mean(axis=(2, 3))[:, [0, -1]]


def flat(images):
    return np.zeros(len(images))


def test_a_classifier_is_plugged_in_by_name(config, rng):
    """Catches a user's function that is ignored or applied to padding."""
    images = jnp.asarray(rng.integers(0, 256, (20, 8, 8, 1), np.uint8))
    config.eval.classifier = "tests.metrics.test_labels:brightest_half"
    expected = np.bincount(brightest_half(images[:15]).argmax(axis=1), minlength=2)
    assert load_labeller(config).count(images, 15).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "entry", ["tests.metrics.test_labels", "no_such_module:f", "tests.metrics.test_labels:absent", "core.errors:"]
)
def test_what_cannot_be_plugged_in_is_named(config, entry):
    """Catches a traceback for a module or function that cannot be used."""
    config.eval.classifier = entry
    with pytest.raises(UserError, match="module:function"):
        load_labeller(config)


def test_a_classifier_of_another_shape_is_refused(config, rng):
    """Catches a function that returns labels where scores are expected, and a negative zero for the entropy."""
    config.eval.classifier = "tests.metrics.test_labels:flat"
    images = jnp.asarray(rng.integers(0, 256, (4, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"expected finite scores \[4, K\], got \[4\]"):
        load_labeller(config).count(images, 4)
    assert labels.entropy(np.array([1.0])) == 0


def test_shares_are_corrected_for_confusion():
    """Catches a transposed confusion matrix, a negative share, and NaN for a label that is never assigned."""
    confusion = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.0, 0.4, 0.6]])
    true = np.array([0.5, 0.2, 0.3])
    np.testing.assert_allclose(corrected_shares(true @ confusion, confusion), true, atol=1e-4)
    # The inverted matrix would give the second label a share of -1/6.
    np.testing.assert_allclose(corrected_shares(np.array([1.0, 0.0, 0.0]), confusion), [1, 0, 0], atol=1e-3)
