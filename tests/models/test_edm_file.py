"""EDM's networks and their files, against the outputs of EDM's own code; nothing in a file is executed."""

import gzip
import pickletools
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from configs import imported
from configs.validation import validate
from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.errors import UserError
from core.schedules import rho_sigmas
from models import abstract_params, apply_model, make_denoiser
from models.edm_file import load_edm, network_fields
from sampling.time_grid import time_grid

DATA = Path(__file__).parents[1] / "data/edm"
FILES = {"C": "C_snapshot.pkl", "VE_B": "VE_B.pkl", "D": "D.pkl.gz"}


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "io.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Returns a function from a name to (config, graphdef, weights)."""

    def load(name):
        source = DATA / FILES[name]
        if source.suffix == ".gz":
            unpacked = tmp_path_factory.mktemp("edm") / source.stem
            unpacked.write_bytes(gzip.decompress(source.read_bytes()))
            source = unpacked
        config = imported.get_config(str(source))
        return config, abstract_params(config)[0], load_edm(source, config)

    return load


def assert_near(found, expected, tolerance):
    """Checks equality to `tolerance` times the largest value of each image, which depends on the noise level."""
    largest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_array_less(np.abs(found - expected) / largest, tolerance)


@pytest.mark.parametrize("name", FILES)
def test_networks_equal_those_of_edm(loaded, golden, name):
    """Catches any layer that differs: order of q, k and v, scale of residual sums, epsilon, filters, embeddings."""
    network = loaded(name)
    labels = golden.get(f"{name}_labels")
    x, sigma = golden[f"{name}_x"], golden[f"{name}_sigma"]
    denoise = jax.jit(Denoiser.denoise)
    assert_near(denoise(make_denoiser(*network), x, sigma, labels), golden[f"{name}_D"], 1e-5)
    with jax.enable_x64(True):
        denoiser = make_denoiser(*network).astype(jnp.float64)
        x, sigma = jnp.asarray(x, jnp.float64), jnp.asarray(sigma, jnp.float64)
        assert_near(denoise(denoiser, x, sigma, labels), golden[f"{name}_D64"], 1e-12)
        t = denoiser.schedule.time_at(-jnp.log(sigma))
        x_t = x / per_image(jnp.sqrt(1 + sigma**2), x)
        assert_near(jax.jit(Denoiser.x0)(denoiser, x_t, t, labels), golden[f"{name}_D64"], 1e-10)
        if labels is not None:
            assert_near(denoise(denoiser, x, sigma, labels.argmax(axis=1)), golden[f"{name}_D64"], 1e-12)
            assert_near(denoise(denoiser, x, sigma), golden[f"{name}_D64_nolabel"], 1e-12)


def test_output_is_what_the_network_returns(loaded, golden):
    """Catches an output that is scaled, or an input that is scaled twice; and the augmentation input."""
    config, graphdef, params = loaded("C")
    with jax.enable_x64(True):
        x, sigma = jnp.asarray(golden["C_x"], jnp.float64), jnp.asarray(golden["C_sigma"], jnp.float64)
        seen = x / per_image(jnp.sqrt(sigma**2 + 0.25), x)
        output = jax.jit(Denoiser.output)(
            make_denoiser(config, graphdef, params), seen, jnp.log(sigma) / 4, golden["C_labels"]
        )
        assert_near(output, golden["C_F64"], 1e-12)

        def augmented(x, t, labels):
            return apply_model(graphdef, params, x, t, labels, augment=jnp.asarray(golden["C_augment_labels"]))

        denoiser = make_denoiser(config, graphdef, params)
        denoiser = Denoiser(augmented, denoiser.schedule, denoiser.prediction, denoiser.own)
        assert_near(denoiser.denoise(x, sigma, golden["C_labels"]), golden["C_D64_augment"], 1e-12)


PRECONDITIONED = {  # name: the fields that the preconditioning sets
    "A": {"model.convention": "edm", "model.prediction": "edm", "schedule.name": "edm"},
    "VP_A": {"model.convention": "vp", "schedule.name": "vp"},
    "VE_B": {"model.convention": "ve", "model.prediction": "negative_eps", "schedule.name": "ve"},
    "iDDPM_D": {"model.convention": "iddpm", "schedule.name": "cosine"},
}


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_preconditionings_equal_those_of_edm(golden, name):
    """Catches a wrong formula of any preconditioning: the network is replaced by its known output."""
    config = imported.get_default_config()
    config.update_from_flattened_dict(PRECONDITIONED[name])
    given = {}

    def network(x, t):
        given["time"] = t
        return jnp.asarray(golden[f"{name}_F64"])

    with jax.enable_x64(True):
        x, sigma = jnp.asarray(golden[f"{name}_x"], jnp.float64), jnp.asarray(golden[f"{name}_sigma"], jnp.float64)
        like = make_denoiser(config, None, None)
        denoiser = Denoiser(network, like.schedule, like.prediction, like.own)
        assert_near(denoiser.denoise(x, sigma), golden[f"{name}_D64"], 1e-12)
    np.testing.assert_allclose(given["time"], golden[f"{name}_c_noise64"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_steps", [5, 9, 18])
def test_sampler_of_edm_is_reproduced(n_steps):
    """Catches a wrong grid, start or last step of Heun's method."""
    with np.load(DATA / "sampler_gmm.npz") as file:
        golden = dict(file)
    schedule = NoiseSchedule.from_sigmas(rho_sigmas(0.002, 80, 1000))
    with jax.enable_x64(True):
        denoiser = Denoiser(_mixture_eps(golden, schedule), schedule)
        probe = jnp.asarray(golden["probe_x"])
        np.testing.assert_allclose(denoiser.denoise(probe, golden["probe_sigma"]), golden["probe_D"], atol=1e-9)
        grid = time_grid(n_steps, 999, "sigma_rho", schedule)
        first_of_step = [0, *range(1, 2 * n_steps - 1, 2)]
        np.testing.assert_allclose(schedule.noise_ratio(grid), golden[f"sigmas{n_steps}"][first_of_step], rtol=1e-10)
        start = golden["latents"] * 80 / np.sqrt(1 + 80**2)
        found = sampling.sample("heun", denoiser, jnp.asarray(start), grid)
    np.testing.assert_allclose(found, golden[f"out{n_steps}"], atol=1e-6)


def _mixture_eps(golden, schedule):
    """Returns the exact noise prediction of the mixture of sampler_gmm.npz."""
    weights, means, covs = (jnp.asarray(golden[key]) for key in ("weights", "means", "covs"))

    def eps(x, t):
        ab = schedule.alpha_bar(t)[0]

        def component(weight, mean, cov):
            centred = x.reshape(len(x), -1) - jnp.sqrt(ab) * mean
            noisy = ab * cov + (1 - ab) * jnp.eye(len(mean))
            solved = jnp.linalg.solve(noisy, centred.T).T
            log = jnp.log(weight) - (centred * solved).sum(axis=1) / 2 - jnp.linalg.slogdet(noisy)[1] / 2
            return log, jnp.sqrt(1 - ab) * solved

        logs, noises = jax.vmap(component)(weights, means, covs)
        return (jax.nn.softmax(logs, axis=0)[..., None] * noises).sum(axis=0).reshape(x.shape)

    def each(x, t):  # in `denoise`, images of a batch have different times
        return jax.vmap(lambda image, time: eps(image[None], time[None])[0])(x, t)

    return each


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, on names with a backslash
def test_mutated_files_give_a_network_or_an_error_of_one_line(tmp_path):
    """Catches exceptions other than UserError, and a file that takes too long to read."""
    data = (DATA / "VE_B.pkl").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "x.pkl"
    refused = sum(is_refused(path, mutated(data, starts(data), rng)) for _ in range(60))
    assert refused > 25


def starts(data):
    """Returns the positions where operations of a pickle start. Changes elsewhere mostly change weights."""
    return [position for _, _, position in pickletools.genops(data)]


def mutated(data, starts, rng):
    """Returns a copy with one to three changes near the start of an operation."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(starts) + rng.choice([0, 0, 0, 1, 2])
        end = at + rng.choice([0, 1, 1, 1, 4, 64])
        splices = [b"", rng.randbytes(end - at), rng.randbytes(1), changed[at:end] * 2, b"cposix\nsystem\n", b"(" * 50]
        changed[at:end] = rng.choice(splices)
    return bytes(changed)


def is_refused(path, data):
    path.write_bytes(data)
    try:
        config = imported.get_config(str(path))
        validate(config)
        load_edm(path, config)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return True
    return False


def test_executes_no_code(tmp_path):
    """Catches a reader that passes any part of the file to pickle, or runs the source text that the file embeds."""
    canary = tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w')".encode()
    embedded = b"# source removed: training/networks.py"
    data = (DATA / "VE_B.pkl").read_bytes()
    assert embedded in data
    path = tmp_path / "x.pkl"
    padded = source[: len(embedded)].ljust(len(embedded), b"#")
    path.write_bytes(data.replace(embedded, padded))
    network_fields(path)
    path.write_bytes(b"\x80\x04cposix\nsystem\n(X\x05\x00\x00\x00touchtR.")
    with pytest.raises(UserError, match="posix.system"):
        network_fields(path)
    assert not canary.exists()


def test_wrong_files_are_named(tmp_path, loaded):
    """Catches a traceback for a file that is missing, empty, or a pickle of something else."""
    path = tmp_path / "x.pkl"
    for data in (None, b"", b"\x80\x04N.", b"\x80\x04}.", (DATA / "VE_B.pkl").read_bytes()[:300_000]):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(UserError) as error:
            imported.get_config(str(path))
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    config, _, _ = loaded("C")
    with pytest.raises(UserError, match="does not fit|lacks"):
        load_edm(DATA / "VE_B.pkl", config)
