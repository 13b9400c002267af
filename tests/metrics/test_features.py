import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from metrics.features import load_features, rebatched


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(0, 7), max_size=5), size=st.integers(1, 9))
def test_every_image_once_and_in_order(counts, size):
    """Catches an image that is lost, repeated or padded where two batches meet."""
    images = np.arange(1, sum(counts) + 1, dtype=np.uint8)[:, None]
    batches = np.split(images, np.cumsum(counts)[:-1]) if counts else []
    padded = [(jnp.pad(jnp.asarray(batch), ((0, 2), (0, 0))), len(batch)) for batch in batches]
    found = list(rebatched(padded, size))
    assert all(batch.shape == (size, 1) for batch, _ in found)
    kept = [np.asarray(batch)[:count] for batch, count in found]
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, 1)), *kept]), images)


def test_error_names_the_missing_inception_file(config, monkeypatch):
    """Catches an error that does not name the file and the path, which a user without network access needs."""
    monkeypatch.setattr("metrics.features.INCEPTION_URL", "http://127.0.0.1:1/weights.pth")
    config.eval.features = "inception"
    with pytest.raises(UserError, match=r"127.0.0.1:1.*6726825d0af5.*inception/pt_inception-2015-12-05-6726825d.pth"):
        load_features(config)


def test_random_convolutions_are_shipped_by_their_seed(config, rng):
    """Catches other random weights in a new NumPy, and grey images with other features than the same RGB images."""
    config.eval.features = "random_conv"
    found = load_features(config)
    assert found.digest == load_features(config).digest
    assert found.digest.startswith("398c63b0871dbc6d")
    grey = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
    extracted = np.asarray(found.extract(jnp.asarray(grey)))
    assert extracted.shape == (3, found.dim)
    np.testing.assert_array_equal(found.extract(jnp.asarray(grey.repeat(3, axis=3))), extracted)
