"""The FID's network against pytorch-fid's numbers (see tests/data/README.md), and the weights' files."""

import json
import zlib

import jax
import numpy as np
import pytest

from core.errors import UserError
from models import inception


def weight(name, shape):
    """The rule of the golden file."""
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
    return inception.load_network(path)


def test_the_rule_is_the_golden_one(golden):
    for name in ("Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn.weight"):
        shape = json.loads(dict(zip(golden["weight_names"], golden["weight_shapes"], strict=True))[name])
        np.testing.assert_array_equal(weight(name, shape).ravel()[:4], golden[f"check_{name}"])


@pytest.mark.parametrize("images", ["32x3", "28x1", "64x3"])
def test_all_blocks_are_those_of_pytorch_fid(golden, network, images):
    """A pool that counts its padding, a maximum in the wrong block, antialiasing, a branch out of order, an epsilon."""
    found = inception.block_means(network.params, golden[f"images_u8_{images}"])
    for dim in (64, 192, 768, 2048):
        expected = golden[f"features_{dim}_{images}"]
        np.testing.assert_allclose(found[dim], expected, atol=1e-5 * np.abs(expected).max())
    error = np.linalg.norm(found[2048] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-5


def test_load_gives_the_features_alone(golden, network, path):
    """The features of another block, or a result that stays on the host."""
    found = inception.features_fn(network)(golden["images_u8_28x1"][:1])
    assert isinstance(found, jax.Array)
    np.testing.assert_allclose(found, golden["features_2048_28x1"][:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", ["npz", "pth"])
def test_damaged_file_is_named(tmp_path, suffix):
    (tmp_path / f"broken.{suffix}").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="broken"):
        inception.load_network(tmp_path / f"broken.{suffix}")


def test_another_network_is_named(tmp_path, network):
    """A file of another architecture, or of torchvision's names, that is read until something breaks."""
    stem = np.zeros((32, 3, 3, 3), np.float32)
    for arrays, says in [
        ({"features.0.weight": stem}, "lacks Conv2d_1a_3x3.conv.weight"),
        ({"Conv2d_1a_3x3.conv.weight": stem[:1]}, "is \\[1, 3, 3, 3\\], not \\[32, 3, 3, 3\\]"),
    ]:
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(UserError, match=says):
            inception.load_network(tmp_path / "other.npz")


def test_larger_images_are_resized_without_antialiasing(rng):
    """A filter that widens, as TensorFlow's and Pillow's do: at half the size torch takes the mean of 2 x 2 pixels."""
    images = rng.integers(0, 256, (2, 598, 598, 1), np.uint8)
    means = images.reshape(2, 299, 2, 299, 2, 1).mean(axis=(2, 4)) / 127.5 - 1
    np.testing.assert_allclose(inception.prepare(images), np.broadcast_to(means, (2, 299, 299, 3)), atol=1e-5)
