"""Weights files: reading returns what was written, and damaged files are refused."""

import jax
import numpy as np
import pytest

import run_lib
from core.errors import UserError
from core.files import read_npz, write_npz
from models import create_model
from models.weights import digest, fill, read_weights, save_weights
from training.checkpoints import load_ema


@pytest.fixture
def saved(config, tmp_path):
    _, params = create_model(config, jax.random.key(0))
    save_weights(tmp_path / "weights.npz", config, step=7, params=params)
    return tmp_path / "weights.npz", params


def test_import_after_export_gives_the_same_network(config, tmp_path, saved):
    """Catches a weight assigned to another layer, and a lost step, in import followed by export."""
    path, params = saved
    run_lib.import_weights(config, tmp_path / "run", path)
    step, _, ema = load_ema(config, tmp_path / "run")
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, ema, params)
    assert digest(ema) == digest(params)
    assert digest(ema) != digest(jax.tree.map(lambda leaf: leaf * 1.0001, params))
    run_lib.export_weights(config, tmp_path / "run", tmp_path / "again.npz")
    assert {name: array.tobytes() for name, array in read_npz(path, set()).items() if name != "origin"} == {
        name: array.tobytes() for name, array in read_npz(tmp_path / "again.npz", set()).items() if name != "origin"
    }
    with pytest.raises(UserError, match="exists already"):
        run_lib.export_weights(config, tmp_path / "run", path)


def test_weights_of_another_network_are_refused(config, tmp_path, saved):
    """Catches weights imported into a network of another architecture."""
    config.model.patch_size = 2
    with pytest.raises(UserError, match="model.patch_size is 2, there 1"):
        run_lib.import_weights(config, tmp_path / "run", saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("conv_in.kernel"), "conv_in.kernel is in the file or"),
        (lambda arrays: arrays.update(extra=np.zeros(3, np.float32)), "extra is in the file or"),
        (lambda arrays: arrays.update({"conv_in.bias": np.zeros(3, np.float32)}), "conv_in.bias should be"),
        (lambda arrays: arrays.update({"conv_in.bias": np.zeros(32)}), "found float64"),
        (lambda arrays: arrays.update({"conv_in.bias": np.full(32, np.nan, np.float32)}), "conv_in.bias holds NaN"),
        (lambda arrays: arrays.update(origin=np.asarray("{}")), "origin cannot be read"),
        (lambda arrays: arrays.update(origin=np.asarray('{"step": -3, "config": {}}')), "step -3 is out of range"),
    ],
)
def test_damaged_weights_are_refused(config, tmp_path, saved, change, message):
    """Catches damaged, missing or additional weights that are loaded without an error."""
    arrays = read_npz(saved[0], set())
    change(arrays)
    write_npz(tmp_path / "changed.npz", arrays)
    with pytest.raises(UserError, match=message):
        fill(tmp_path / "changed.npz", config, read_weights(tmp_path / "changed.npz").arrays)
