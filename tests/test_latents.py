"""Arrays that are not images: their Gaussian, samples that stay floats, and refusal of what needs images."""

import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
from configs.validation import validate, validate_analysis
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from evaluation import EvalContext, EvalRun
from metrics import statistics
from sampling.late_start import DataGaussian


@pytest.fixture
def latents(config, tmp_path, rng):
    """A config of latents [60, 4, 4, 5], far from the range of images."""
    values = (20 + 3 * rng.standard_normal((60, 4, 4, 5))).astype(np.float32)
    np.save(tmp_path / "latents.npy", values)
    config.data.update(dataset="latents", path=str(tmp_path / "latents.npy"), image_size=4, num_channels=5, held_out=0)
    config.sampling.components = "2"
    return config, values


def test_statistics_are_in_the_range_of_the_latents(latents):
    """Catches latents that are scaled like pixels, and features of latents."""
    config, values = latents
    validate(config)
    run_lib.fid_stats(config)
    gaussian = DataGaussian.load(statistics.stats_path(config, "gaussian"))
    flat = values.reshape(len(values), -1)
    np.testing.assert_allclose(gaussian.mean, flat.mean(axis=0), rtol=1e-6)
    covariance = (gaussian.eigenvectors * gaussian.eigenvalues) @ gaussian.eigenvectors.T
    np.testing.assert_allclose(covariance, np.cov(flat, rowvar=False), atol=1e-5)
    mixture = statistics.load_mixture(config)
    means = np.asarray(mixture.component_means(jnp.float32)).reshape(mixture.num_components, -1)
    np.testing.assert_allclose(mixture.weights @ means, flat.mean(axis=0), rtol=1e-5)
    config.data.held_out = 0.5
    with pytest.raises(UserError, match="run --mode=fid_stats"):  # half of the latents are other data
        statistics.require_stats(config, statistics.GAUSSIAN)


def test_samples_are_not_rounded_to_grey_levels(latents):
    """Catches latents that are clipped to the range of images."""
    config, _ = latents
    config.sampling.n_steps = 2
    denoiser = Denoiser(lambda x, t: jnp.full_like(x, 20.25), NoiseSchedule.linear(), "x0")
    run = EvalRun(config, EvalContext(checkpoint_step=0, weights_sha256="", denoiser=denoiser))
    timesteps, _ = run.plan()
    np.testing.assert_array_equal(run.images(timesteps), np.full((10, 4, 4, 5), 20.25, np.float32))


def test_automatic_start_is_refused(latents):
    """Catches features of latents that are taken for pixels."""
    config, _ = latents
    config.sampling.update(gls=True, t_start=-1)
    with pytest.raises(UserError, match="needs images, and data.dataset=latents has none"):
        validate(config)


@pytest.mark.parametrize("mode", ["train", "evaluate", "sample", "analyze"])
def test_what_needs_images_is_refused(latents, tmp_path, mode):
    """Catches scores of latents that are taken for pixels; the message says what to do instead."""
    config, _ = latents
    with pytest.raises(UserError, match="needs images, and data.dataset=latents has none"):
        if mode == "analyze":
            validate_analysis(config)
        elif mode == "sample":
            run_lib.sample(config, tmp_path / "w", num=2)
        else:
            getattr(run_lib, mode)(config, tmp_path / "w")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((3, 4, 4, 5), np.uint8), "found uint8"),
        (np.zeros((3, 4, 4), np.float32), "but latents are floats"),
        (np.full((3, 4, 4, 5), np.nan, np.float32), "NaN"),
        (np.zeros((3, 5, 4, 4), np.float32), "require"),
    ],
)
def test_other_arrays_are_refused(latents, tmp_path, values, says):
    """Catches a traceback, and latents with the channels first."""
    config, _ = latents
    np.save(tmp_path / "latents.npy", values)
    with pytest.raises(UserError, match=says):
        run_lib.fid_stats(config)


def test_more_channels_are_for_latents_only(latents):
    """Catches images of four channels, which nothing reads."""
    config, _ = latents
    config.data.dataset = "custom"
    with pytest.raises(UserError, match="images have 1 or 3"):
        validate(config)
