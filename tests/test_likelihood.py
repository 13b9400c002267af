"""Bits per dimension, compared with closed forms for Gaussian data and for one pixel that is always black."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
import evaluation
import likelihood
import run_lib
from core import files
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from sampling.late_start import DataGaussian

SCHEDULE = NoiseSchedule.linear()
SHAPE = (4, 4, 1)
DIM = 16


def gaussian_eps(gaussian, schedule, x, t):
    return gaussian.eps(x, schedule.alpha_bar(t))


def exact_denoiser(gaussian, schedule=SCHEDULE):
    """Returns the exact denoiser of Gaussian data. The Gaussian is traced, so one compilation is enough."""
    return Denoiser(jax.tree_util.Partial(gaussian_eps, gaussian, schedule), schedule)


def gaussian_images(centered, smallest, n=12_000):
    """Returns uint8 images, the correlated Gaussian whose samples were rounded, and its entropy in bits per dimension.

    The standard deviations are from `smallest` to 1/4, in units of half the range from black to white.
    """
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    stds = np.geomspace(0.25, smallest, DIM) * 127.5
    levels = rng.standard_normal((n, DIM)) * stds @ basis.T + 127.5
    images = np.clip(np.round(levels), 0, 255).astype(np.uint8).reshape(n, *SHAPE)
    scale, shift = (2 / 255, 1) if centered else (1 / 255, 0)
    gaussian = DataGaussian(
        np.full(DIM, 127.5 * scale - shift), basis, (stds * scale) ** 2, residual_variance=0.0, image_shape=SHAPE
    )
    return jnp.asarray(images), gaussian, float(np.mean(0.5 * np.log2(2 * np.pi * np.e * stds**2)))


def mean_of(bits):
    return float(np.mean(np.asarray(bits, np.float64)))


def analytic_bits(images, gaussian, centered):
    """Returns -log2 of the probability of each image's bins, approximated by density times width, per dimension."""
    x = np.asarray(datasets.to_network_range(images, centered), np.float64).reshape(len(images), DIM)
    along = (x - gaussian.mean) @ gaussian.eigenvectors
    nats = 0.5 * (along**2 / gaussian.eigenvalues + np.log(2 * np.pi * gaussian.eigenvalues)).mean(axis=1)
    return (nats - np.log(likelihood.bin_width(centered))) / np.log(2)


def looseness(variances):
    """Returns the bound minus the entropy for Gaussian data, in bits per dimension: the KL terms of all reverse steps.

    The exact variance of x_{t-1} given x_t is beta_t V_{t-1} / V_t, where V_t is the variance of x_t; the model's is
    beta_t.
    """
    ab = np.concatenate([[1], SCHEDULE.alpha_bars])[:, None]
    marginal = ab * variances + 1 - ab
    ratio = marginal[:-1] / marginal[1:]
    return float(0.5 * (ratio - 1 - np.log(ratio)).sum(axis=0).mean() / np.log(2))


@pytest.mark.parametrize(("centered", "smallest"), [(True, 0.24), (False, 0.05)])
def test_both_methods_give_the_entropy_of_gaussian_data(centered, smallest):
    """Catches a lost Jacobian, a wrong offset of the range, 256 bins instead of 255, a time off by one, a missing term.

    The exact code length of each image is known, and its mean is the entropy. The difference for each image does not
    depend on which images were drawn.
    """
    images, gaussian, entropy = gaussian_images(centered, smallest)
    keys = jax.random.split(jax.random.key(1), len(images))
    denoiser = exact_denoiser(gaussian)
    analytic = analytic_bits(images, gaussian, centered)
    assert mean_of(analytic) == pytest.approx(entropy, abs=0.01)
    few = slice(500)
    ode = likelihood.ode_bits(denoiser, images[few], keys[few], centered=centered, exact=True) - analytic[few]
    assert mean_of(ode) + entropy == pytest.approx(entropy, abs=0.01)
    bound = sum(likelihood.bound_bits(denoiser, images, keys, centered=centered).values()) - analytic
    assert mean_of(bound) + entropy == pytest.approx(entropy + looseness(gaussian.eigenvalues), abs=0.01)
    if centered:
        assert looseness(gaussian.eigenvalues) < 0.01
        assert mean_of(bound) + entropy == pytest.approx(entropy, abs=0.01)


def test_each_image_has_the_density_of_data_with_the_noise_of_t_0():
    """Catches errors that cancel on average, and a bias other than the one that the module's docstring describes.

    The data have the variance of the noise at t = 0.
    """
    images, gaussian, _ = gaussian_images(True, smallest=0.01, n=40)
    offsets = []

    def middle(key, shape, minval, maxval):  # the centre of the bin instead of a random point
        offsets.append((minval, maxval))
        return jnp.zeros(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", middle)
        keys = jax.random.split(jax.random.key(1), len(images))
        found = likelihood.ode_bits.__wrapped__(exact_denoiser(gaussian), images, keys, centered=True, exact=True)
    assert offsets == [(-0.5, 0.5)]
    blurred = gaussian.eigenvalues + (1 - SCHEDULE.alpha_bars[0]) / SCHEDULE.alpha_bars[0]
    expected = analytic_bits(
        images,
        DataGaussian(gaussian.mean, gaussian.eigenvectors, blurred, residual_variance=0.0, image_shape=SHAPE),
        True,
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_bits_of_a_pixel_that_is_always_black():
    """Catches wrong numbers in the module's docstring: 1.7 bits against 0.6 + 0.49 bits."""
    black = exact_denoiser(
        DataGaussian(np.full(DIM, -1.0), np.eye(DIM), np.zeros(DIM), residual_variance=0.0, image_shape=SHAPE)
    )
    images = jnp.zeros((500, *SHAPE), jnp.uint8)
    keys = jax.random.split(jax.random.key(3), 500)
    ode = likelihood.ode_bits(black, images, keys, centered=True, exact=True)
    assert mean_of(ode) == pytest.approx(1.71, abs=0.01)
    terms = likelihood.bound_bits(black, images, keys, centered=True)
    assert mean_of(terms["L_0"]) == pytest.approx(0.616, abs=0.001)
    assert mean_of(terms["L_t"]) == pytest.approx(0.486, abs=0.001)


def test_hutchinson_is_unbiased():
    """Catches a probe with a wrong variance, or one probe for all images. The exact divergence is known."""
    images, gaussian, _ = gaussian_images(True, smallest=0.02, n=500)
    keys = jax.random.split(jax.random.key(2), len(images))
    denoiser = exact_denoiser(gaussian)
    exact = likelihood.ode_bits(denoiser, images, keys, centered=True, exact=True)
    estimated = likelihood.ode_bits(denoiser, images, keys, centered=True, exact=False)
    difference = np.asarray(estimated) - np.asarray(exact)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(images))
    assert difference.std() > 0.01


def test_hutchinson_in_float64():
    """Catches a probe with another dtype than the image, which raises an error in JAX."""
    images, gaussian, _ = gaussian_images(True, smallest=0.02, n=2)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), len(images))
        jax.clear_caches()  # earlier compiled programs have float32 constants
        bits = likelihood.ode_bits(exact_denoiser(gaussian), images, keys, centered=True)
    jax.clear_caches()
    assert bits.dtype == np.float64 and np.isfinite(bits).all()


def test_terms_of_the_bound_on_gaussian_data():
    """Catches errors in weight, variance or time that cancel in the sum. For variance s^2, each term is known."""
    s2 = 0.02
    n = 2000
    gaussian = DataGaussian(np.zeros(DIM), np.eye(DIM), np.full(DIM, s2), residual_variance=0.0, image_shape=SHAPE)
    levels = np.random.default_rng(0).standard_normal((n, *SHAPE)) * s2**0.5 * 127.5 + 127.5
    images = jnp.asarray(np.round(levels).astype(np.uint8))
    keys = jax.random.split(jax.random.key(0), n)
    terms = likelihood.bound_bits(exact_denoiser(gaussian), images, keys, centered=True)

    betas = SCHEDULE.betas
    ab = SCHEDULE.alpha_bars
    posterior = betas[1:] * (1 - ab[:-1]) / (1 - ab[1:])
    shift = betas[1:] ** 2 / (1 - betas[1:]) / (1 - ab[1:]) * ab[1:] * s2 / (ab[1:] * s2 + 1 - ab[1:])
    kl = 0.5 * ((posterior + shift) / betas[1:] - 1 - np.log(posterior / betas[1:]))
    assert mean_of(terms["L_t"]) == pytest.approx(kl.sum() / np.log(2), abs=0.01)
    x0 = np.asarray(datasets.to_network_range(images, True))
    prior = 0.5 * (ab[-1] * x0**2 - ab[-1] - np.log1p(-ab[-1])).mean(axis=(1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(terms["L_T"], prior, rtol=1e-3)


@pytest.mark.parametrize("centered", [True, False])
@settings(max_examples=50, deadline=None)
@given(mean=st.floats(-30, 30), scale=st.floats(1e-3, 10))
def test_decoder_is_a_distribution_over_256_levels(centered, mean, scale):
    """Catches bins that overlap or leave gaps, bounded outer bins, and infinity or NaN far from the mean."""
    levels = jnp.arange(256, dtype=jnp.uint8)
    found = likelihood.log_probability(levels, mean=jnp.full(256, mean), scale=jnp.asarray(scale), centered=centered)
    logs = np.asarray(found, np.float64)
    assert np.isfinite(logs).all()
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-3)
    centres = np.asarray(datasets.to_network_range(levels, centered))
    assert abs(centres[np.argmax(logs)] - np.clip(mean, centres[0], centres[-1])) <= max(1.01 / 255, 3 * scale)


def measured(config, batch_size):
    """Returns the means and standard errors of ten digits."""
    config.eval.batch_size = batch_size
    images = datasets.load(config, "train").images[:10]
    gaussian = DataGaussian(
        np.linspace(-1, 1, 64), np.eye(64), np.linspace(2, 0.1, 64), residual_variance=0.0, image_shape=(8, 8, 1)
    )
    schedule = NoiseSchedule.linear(num_timesteps=50)
    bits = likelihood.measure(config, exact_denoiser(gaussian, schedule), images)
    return [bits[name][value] for name in likelihood.ROWS for value in ("mean", "standard_error")]


def test_same_bits_for_any_batch_size_and_device_count(config, tmp_path):
    """Catches noise that depends on the batch or device, counted padding, and step sizes shared by images."""
    on_one_device = measured(config, 10)
    code = f"""
import numpy as np, jax
from configs.ddpm import digits
from tests.test_likelihood import measured
assert jax.device_count() == 4
np.save({str(tmp_path / "four.npy")!r}, measured(digits.get_config(), 3))
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | flags, check=True, cwd=files.REPOSITORY)
    np.testing.assert_allclose(np.load(tmp_path / "four.npy"), on_one_device, rtol=1e-4)


def test_eval_prints_both_methods_and_names_the_split(config, tmp_path, capsys, monkeypatch):
    """Catches bits that are printed and not stored, and bits of training images that are called test images."""
    monkeypatch.setattr(evaluation.checkpoints, "require", lambda *_: 1)
    monkeypatch.setattr(evaluation.checkpoints, "load_ema", lambda *_: (1, None, nnx.State({})))
    monkeypatch.setattr(evaluation, "make_denoiser", lambda *_: Denoiser(lambda x, t: 0.5 * x, SCHEDULE))
    config.eval.update(enable_fid=False, enable_bpd=True, bpd_num_images=7, bpd_dataset="test", num_samples=2)
    with pytest.raises(UserError, match="digits has no test split"):
        run_lib.evaluate(config, tmp_path)
    config.eval.bpd_dataset = "train"
    bits = run_lib.evaluate(config, tmp_path)["bits_per_dim"]
    assert "bits per dimension of 7 train images" in capsys.readouterr().out
    [stored] = tmp_path.glob("eval/*/result.json")
    assert json.loads(stored.read_text())["bits_per_dim"] == bits
    assert (bits["split"], bits["num_images"]) == ("train", 7)
    parts = [bits[name]["mean"] for name in ("L_0", "L_t", "L_T")]
    assert bits["bound"]["mean"] == pytest.approx(sum(parts), rel=1e-6)
