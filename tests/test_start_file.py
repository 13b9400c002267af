"""Start files, and the same images in diffusers.

tests/data/diffusers_digits.npz has the images that examples/diffusers_start.py made with diffusers 0.42.1 and torch
2.13.0 on a CPU, from the noise of the first four images. `make test-diffusers` makes them again, and
`python -m tests.test_start_file` records them.
"""

import functools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, safe_open

import run_lib
import sampling
from configs.ddpm import digits
from core.diffusion import Denoiser
from core.errors import UserError
from core.files import REPOSITORY, write_npz
from metrics import statistics
from sampling.generate import component_sequence, generate, grid_of, prior
from sampling.start_file import SCHEDULERS

RECORDED = REPOSITORY / "tests/data/diffusers_digits.npz"
SHAPE = (8, 8, 1)
COUNT = 4


def digits_config(folder):
    config = digits.get_config()
    config.assets_dir = str(folder / "assets")
    config.data.cache_dir = str(folder / "decoded")
    config.eval.enable_fid = False
    config.sampling.update(gls=True, t_start=400, n_steps=5, sampler="unipc_2", components="labels")
    return config


def export(folder):
    """Exports the shipped network for digits to a folder for diffusers, and its late start to a start file."""
    config = digits_config(folder)
    run_lib.import_weights(config, folder / "digits", REPOSITORY / "assets/weights/digits_8.npz")
    run_lib.fid_stats(config)
    run_lib.export_weights(config, folder / "digits", folder / "unet")
    run_lib.export_start(config, folder / "digits", folder / "start.safetensors")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(tmp_path_factory.mktemp("digits"))


def read(folder):
    with safe_open(folder / "start.safetensors", "np") as file:
        header = json.loads(file.metadata()["start"])
    return header, load_file(folder / "start.safetensors")


def own_images(folder, sampler):
    """Returns the images of --mode=sample, before they are rounded to grey levels."""
    config = digits_config(folder)
    config.sampling.sampler = sampler
    denoiser = run_lib.load_denoiser(folder / "digits")
    mixture = statistics.load_mixture(config)
    timesteps = grid_of(config, denoiser.schedule, late=True)
    run = generate(config, denoiser, mixture, timesteps, image_shape=SHAPE, num=COUNT, batch_size=COUNT)
    return np.concatenate([np.asarray(x0) for x0, _ in run])


def diffusers_images(folder, name):
    """Returns the images that the example draws with one of SCHEDULERS."""
    import diffusers

    from examples import diffusers_start

    header, arrays = diffusers_start.load(folder / "start.safetensors")
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    seed = digits_config(folder).seed
    noise = np.asarray(prior(seed, 0, COUNT, SHAPE)[0]).reshape(COUNT, -1)
    component = component_sequence(arrays["weights"], seed, 0, COUNT)
    images = diffusers_start.sample(header, arrays, lambda x, t: unet(x, t).sample, noise, component, name)
    return images.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_same_images_as_recorded_in_diffusers(exported, name):
    """Catches a sampler, start, history or grid that no longer makes the images of diffusers."""
    recorded = np.load(RECORDED)[name]
    np.testing.assert_allclose(own_images(exported, SCHEDULERS[name]["sampler"]), recorded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_same_images_in_diffusers(exported, name):
    """Catches a wrong option, scale or time in the file or the example. Needs torch and diffusers."""
    pytest.importorskip("diffusers")
    ours = own_images(exported, SCHEDULERS[name]["sampler"])
    np.testing.assert_allclose(diffusers_images(exported, name), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "unipc_2"])
def test_network_that_predicts_v_in_diffusers(exported, name):
    """Catches v that is taken for noise, in the loop of DDIM or in the history. Needs torch and diffusers."""
    pytest.importorskip("diffusers")
    import diffusers

    from examples import diffusers_start

    header, arrays = diffusers_start.load(exported / "start.safetensors")
    unet = diffusers.UNet2DModel.from_pretrained(exported / "unet")
    alpha_bars = np.cumprod(1 - arrays["betas"])
    noise, component = np.random.default_rng(0).standard_normal((COUNT, 64), np.float32), np.arange(COUNT)

    def v(x, t):
        ab = alpha_bars[int(t)]
        eps = unet(x, t).sample
        return (eps - (1 - ab) ** 0.5 * x) / ab**0.5

    expected = diffusers_start.sample(header, arrays, lambda x, t: unet(x, t).sample, noise, component, name)
    header["schedulers"][name]["options"]["prediction_type"] = "v_prediction"
    images = diffusers_start.sample(header, arrays, v, noise, component, name)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_network_of_torch_in_our_samplers(exported, sampler):
    """Catches axes, dtypes or times that change between JAX and PyTorch. PNDM has times that are not integers."""
    pytest.importorskip("diffusers")
    import diffusers

    from examples.torch_eps_fn import torch_eps_fn

    config = digits_config(exported)
    unet = diffusers.UNet2DModel.from_pretrained(exported / "unet")
    mixture = statistics.load_mixture(config)
    schedule = run_lib.load_denoiser(exported / "digits").schedule
    component = component_sequence(np.asarray(mixture.weights), config.seed, 0, COUNT)
    x = mixture.sample(prior(config.seed, 0, COUNT, SHAPE)[0], component, schedule.alpha_bar(400))
    denoiser = Denoiser(torch_eps_fn(lambda x, t: unet(x, t).sample), schedule)
    images = jax.jit(functools.partial(sampling.sample, sampler, denoiser))(x, grid_of(config, schedule, late=True))
    np.testing.assert_allclose(images, own_images(exported, sampler), rtol=0, atol=1e-4)


def test_file_gives_the_start(exported):
    """Catches arrays that differ from the mixture. Dense means and covariances give the same samples."""
    header, arrays = read(exported)
    config = digits_config(exported)
    noise = np.asarray(prior(config.seed, 0, COUNT, SHAPE)[0])
    component = np.array([0, 3, 9, 3])
    ab, outside = header["alpha_bar"], np.eye(64) - arrays["eigenvectors"] @ arrays["eigenvectors"].T
    drawn = []
    for z, c in zip(noise.reshape(COUNT, -1), component, strict=True):
        mean = arrays["mean"] + arrays["eigenvectors"] @ arrays["means"][c]
        basis = arrays["eigenvectors"].copy()
        rank = arrays["rotations"].shape[1]
        basis[:, :rank] = basis[:, :rank] @ arrays["rotations"][c]
        covariance = basis * arrays["variances"][c] @ basis.T + arrays["residual_variances"][c] * outside
        values, vectors = np.linalg.eigh(ab * covariance + (1 - ab) * np.eye(64))
        drawn.append(np.sqrt(ab) * mean + vectors * np.sqrt(values) @ vectors.T @ z)
    expected = statistics.load_mixture(config).sample(noise, component, ab)
    np.testing.assert_allclose(np.reshape(drawn, noise.shape), expected, atol=1e-4)
    np.testing.assert_allclose(np.cumprod(1 - arrays["betas"])[header["timesteps"]], header["alpha_bars"], rtol=1e-6)


def test_header_says_what_a_reader_needs(exported):
    """Catches a field that docs/start_file.md names but the file lacks, and a field that the page does not name."""
    header, arrays = read(exported)
    page = (REPOSITORY / "docs/start_file.md").read_text()
    assert [name for name in (*header, *arrays) if f"`{name}`" not in page] == []
    assert header["timesteps"] == [400, 300, 200, 100, 0] and header["sampler"] == "unipc_2"
    assert header["schedulers"]["unipc_2"]["history"] and not header["schedulers"]["euler"]["history"]
    sigma = header["sigmas"]
    assert header["history"]["sigma"] == pytest.approx(sigma[0] ** 2 / sigma[1])


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ({"sampler": "pndm"}, "a.safetensors", "no scheduler of diffusers follows --sampler=pndm"),
        ({"gls": False}, "a.safetensors", "give --gls"),
        ({"clip_x0": True}, "a.safetensors", "clip_x0"),
        ({"baseline": "isotropic"}, "a.safetensors", "except no_history"),
        ({"prediction": "x0"}, "a.safetensors", "for networks that predict eps, v, not model.prediction=x0"),
        ({}, "a.npz", "ends in .safetensors"),
        ({}, "start.safetensors", "exists already"),
    ],
)
def test_refused_before_the_network_is_loaded(exported, fields, name, message):
    """Catches an export that other programs cannot use."""
    config = digits_config(exported)
    for section in (config.sampling, config.model):
        section.update({field: value for field, value in fields.items() if field in section})
    with pytest.raises(UserError, match=message):
        run_lib.export_start(config, Path("nowhere"), exported / name)


def test_example_is_short():
    """Catches an example that has become longer than 60 lines of code."""
    text = (REPOSITORY / "examples/diffusers_start.py").read_text().split('"""', 2)[2]
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len(code) <= 60


def main():
    """Records the images of diffusers."""
    with tempfile.TemporaryDirectory() as folder:
        images = functools.partial(diffusers_images, export(Path(folder)))
        write_npz(RECORDED, {name: images(name) for name in SCHEDULERS})


if __name__ == "__main__":
    main()
