"""The FID's network against the results of pytorch-fid (see tests/data/README.md), and its weights files."""

import json
import zlib

import jax
import numpy as np
import pytest
from flax import nnx

from core.errors import UserError
from models import inception


def weight(name, shape):
    """Returns the weights with which the golden file was computed, see tests/data/README.md."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("running_var", "bn.weight")):
        return draw.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("running_mean", "bias")):
        return (0.1 * draw.standard_normal(shape)).astype(np.float32)
    return (draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load("tests/data/inception.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def path(golden, tmp_path_factory):
    shapes = zip(golden["weight_names"].tolist(), map(json.loads, golden["weight_shapes"].tolist()), strict=True)
    path = tmp_path_factory.mktemp("inception") / "rule.npz"
    np.savez(path, **{name: weight(name, shape) for name, shape in shapes})
    return path


@pytest.fixture(scope="module")
def network(path):
    return inception.load(path)


def test_weights_equal_those_of_the_golden_file(golden):
    """Catches a change of NumPy's random numbers, which would make all other tests in this file fail."""
    for name in ("Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn.weight"):
        shape = json.loads(dict(zip(golden["weight_names"], golden["weight_shapes"], strict=True))[name])
        np.testing.assert_array_equal(weight(name, shape).ravel()[:4], golden[f"check_{name}"])


@pytest.mark.parametrize("images", ["32x3", "28x1", "64x3"])
def test_all_blocks_equal_those_of_pytorch_fid(golden, network, images):
    """Catches counted padding, max pooling in the wrong block, antialiasing, branches out of order, a wrong epsilon."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: inception.Inception(rngs=nnx.Rngs(0))))
    block_means = jax.jit(lambda params, images: nnx.merge(graphdef, params).blocks(images))
    found = block_means(network.params, golden[f"images_u8_{images}"])
    for dim in (64, 192, 768, 2048):
        expected = golden[f"features_{dim}_{images}"]
        np.testing.assert_allclose(found[dim], expected, atol=1e-5 * np.abs(expected).max())
    error = np.linalg.norm(found[2048] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-5


def test_load_returns_a_function_to_features(golden, network):
    """Catches features of a wrong block, and a result in host memory."""
    found = network(golden["images_u8_28x1"][:1])
    assert isinstance(found, jax.Array)
    np.testing.assert_allclose(found, golden["features_2048_28x1"][:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", ["npz", "pth"])
def test_damaged_file_is_named(tmp_path, suffix):
    """Catches a traceback of zipfile or of the reader of torch files."""
    (tmp_path / f"broken.{suffix}").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="broken"):
        inception.load(tmp_path / f"broken.{suffix}")


def test_weights_of_another_network_are_refused(tmp_path):
    """Catches a traceback for a file of another architecture or with torchvision's names."""
    stem = np.zeros((32, 3, 3, 3), np.float32)
    for arrays, message in [
        ({"features.0.weight": stem}, "lacks Conv2d_1a_3x3.conv.weight"),
        ({"Conv2d_1a_3x3.conv.weight": stem[:1]}, "is \\[1, 3, 3, 3\\], not \\[32, 3, 3, 3\\]"),
    ]:
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(UserError, match=message):
            inception.load(tmp_path / "other.npz")


def test_larger_images_are_resized_without_antialiasing(rng):
    """Catches an antialiasing filter as in Pillow: at half the size, torch averages only 2 x 2 pixels."""
    images = rng.integers(0, 256, (2, 598, 598, 1), np.uint8)
    means = images.reshape(2, 299, 2, 299, 2, 1).mean(axis=(2, 4)) / 127.5 - 1
    np.testing.assert_allclose(inception.prepare(images), np.broadcast_to(means, (2, 299, 299, 3)), atol=1e-5)
