"""Files of improved- and guided-diffusion, against the outputs of guided-diffusion's own code."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imported
from core.diffusion import Denoiser
from core.errors import UserError
from models import abstract_params, make_denoiser
from models.guided_file import load_guided

DATA = Path(__file__).parents[1] / "data/guided_diffusion"
COSINE = {"diffusion_steps": 4000, "noise_schedule": "cosine"}


@pytest.fixture
def source(tmp_path):
    """Writes the file as guided-diffusion does, with config.json beside it."""
    arguments = json.loads((DATA / "config.json").read_text()) | COSINE
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    (tmp_path / "model.pt").write_bytes(gzip.decompress((DATA / "model.pt.gz").read_bytes()))
    return tmp_path / "model.pt"


def test_network_equals_that_of_guided_diffusion(source):
    """Catches a wrong order of q, k, v or heads, a wrong number of groups, and a time that is not rescaled."""
    config = imported.get_config(str(source))
    denoiser = make_denoiser(config, abstract_params(config)[0], load_guided(source, config))
    with np.load(DATA / "io.npz") as file:
        golden = {key.removesuffix("_nchw"): file[key] for key in file}
    x, labels = golden["x"].transpose(0, 2, 3, 1), jnp.asarray(golden["y"], jnp.int32)
    output = jax.jit(Denoiser.output)
    for time, expected in (("t", "out"), ("t_float", "out_t_float")):
        found = np.asarray(output(denoiser, x, golden[time], labels)).transpose(0, 3, 1, 2)
        assert np.abs(found - golden[expected]).max() < 1e-5 * np.abs(golden[expected]).max()
    np.testing.assert_allclose(denoiser.schedule.betas, golden["betas"], rtol=1e-9)
    found = np.asarray(jax.jit(Denoiser.x0)(denoiser, x, golden["t"], labels)).transpose(0, 3, 1, 2)
    largest = np.abs(golden["pred_xstart"]).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(found - golden["pred_xstart"]) < 2e-5 * largest).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [({"dims": 3}, "dims other than 2"), ({"depth": 3}, "depth"), ({"noise_schedule": "odd"}, "odd")],
)
def test_networks_that_are_not_supported_are_named(source, change, says):
    """Catches arguments that are ignored."""
    file = source.parent / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=says):
        imported.get_config(str(source))
    file.unlink()
    with pytest.raises(UserError, match="does not describe its network"):
        imported.get_config(str(source))
