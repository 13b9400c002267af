"""Checkpoints of score_sde and its PyTorch port against the outputs of their own code, and damaged files."""

import gzip
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import imported
from core.diffusion import Denoiser
from core.errors import UserError
from models import abstract_params, make_denoiser
from models.score_sde_file import load_score_sde, network_fields
from tests.torch_pickles import body, pickled, rule, tensor, write_zip

DATA = Path(__file__).parents[1] / "data/score_sde"
CASES = ["ncsnpp", "ncsnpp_skip"]
PORTED = ["ve", "skip", "ddpm"]
FREQUENCIES = "all_modules.0.W"


@pytest.fixture
def unpacked(tmp_path):
    """Returns a function that unpacks the checkpoint of a case into a folder with its config.json."""

    def unpack(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((DATA / f"{name}.json").read_bytes())
        (folder / "checkpoint_1").write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
        return folder / "checkpoint_1"

    return unpack


@pytest.mark.parametrize("name", CASES)
def test_networks_equal_those_of_score_sde(unpacked, name):
    """Catches a wrong order of blocks or attention, wrong pyramids, a missing division by sigma, a missing 2 x - 1."""
    source = unpacked(name)
    config = imported.get_config(str(source))
    step, params = load_score_sde(source, config)
    denoiser = make_denoiser(config, abstract_params(config)[0], params)
    assert step == json.loads((DATA / "steps.json").read_text())[name]
    with np.load(DATA / "io.npz") as file:
        golden = {key.removeprefix(f"{name}-"): file[key] for key in file if key.startswith(f"{name}-")}
    found = jax.jit(Denoiser.output)(denoiser, golden["x"], golden["time"])
    assert np.abs(found - golden["out"]).max() < 1e-5 * np.abs(golden["out"]).max()
    sigma = golden["sigma"][:, None, None, None].astype(np.float64)
    found = jax.jit(Denoiser.denoise)(denoiser, golden["x"], golden["sigma"])
    expected = golden["x"] + sigma**2 * golden["score"]  # Tweedie's formula
    largest = np.maximum(np.abs(expected).max(axis=(1, 2, 3), keepdims=True), sigma)
    assert (np.abs(found - expected) <= 1e-5 * largest).all()


def write_port(path: Path, shapes: dict) -> None:
    """Writes a checkpoint of the PyTorch port with generated weights, whose averages begin with seed 1000."""
    weights = {name: rule(999, shape) for name, shape in shapes.items()}
    trained = [name for name in shapes if name != FREQUENCIES or len(shapes[name]) > 1]
    averages = {f"average_{i}": rule(1000 + i, shapes[name]) for i, name in enumerate(trained)}
    parts = {name: tensor(name, "float32", a.size, a.shape, strides_of(a)) for name, a in (weights | averages).items()}
    model = b"}(" + b"".join(body(f"module.{name}") + parts[name] for name in weights) + b"u"
    ema = b"}(" + body("shadow_params") + b"](" + b"".join(parts[name] for name in averages) + b"eu"
    operations = b"}(" + body("model") + model + body("ema") + ema + body("step") + body(77) + b"u"
    write_zip(path, pickled(operations), {name: a.tobytes() for name, a in (weights | averages).items()})


def strides_of(array: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // array.itemsize for stride in array.strides)


@pytest.mark.parametrize("name", PORTED)
def test_networks_equal_those_of_the_pytorch_port(tmp_path, name):
    """Catches modules in another order, raw weights in place of averages, and frequencies that shift the averages."""
    with np.load(DATA / "port.npz") as file:
        golden = {key.removeprefix(f"{name}_"): file[key] for key in file if key.startswith(f"{name}_")}
    source = tmp_path / "checkpoint.pth"
    (tmp_path / "config.json").write_text(str(golden["config"]))
    write_port(source, json.loads(str(golden["shapes"])))
    config = imported.get_config(str(source))
    step, params = load_score_sde(source, config)
    assert step == 77
    x = 2 * rule(1, (2, 3, 8, 8)).transpose(0, 2, 3, 1)
    denoiser = make_denoiser(config, abstract_params(config)[0], params)
    found = np.asarray(jax.jit(Denoiser.output)(denoiser, x, golden["time"])).transpose(0, 3, 1, 2)
    assert np.abs(found - golden["out"]).max() < 1e-5 * np.abs(golden["out"]).max()


@pytest.mark.parametrize(
    ("section", "field", "value", "says"),
    [
        ("training", "sde", "subvpsde", "subvpsde"),
        ("model", "resblock_type", "ddpm", "only 'biggan' is supported"),
        ("model", "progressive", "residual", "residual"),
        ("model", "nf", "many", "nf"),
    ],
)
def test_networks_that_are_not_supported_are_named(unpacked, section, field, value, says):
    """Catches a network or a process that is treated as another one."""
    source = unpacked("ncsnpp")
    file = source.parent / "config.json"
    config = json.loads(file.read_text())
    config[section][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        imported.get_config(str(source))
    file.unlink()
    with pytest.raises(UserError, match="does not describe its network"):
        network_fields(source)


def test_mutated_files_end_in_one_line(unpacked):
    """Catches exceptions other than UserError."""
    source = unpacked("ncsnpp")
    config = imported.get_config(str(source))
    data = source.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(20):
        changed = bytearray(data)
        at = rng.randrange(len(data) if rng.random() < 0.5 else 2000)
        changed[at : at + rng.choice([0, 1, 8])] = rng.choice([b"", rng.randbytes(1), rng.randbytes(9)])
        source.write_bytes(changed[: rng.choice([len(changed), rng.randrange(len(changed))])])
        try:
            load_score_sde(source, config)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 8
