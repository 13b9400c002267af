import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
import likelihood
import run_lib
from core import files
from core.diffusion import NoiseSchedule
from core.errors import UserError
from sampling.late_start import DataGaussian

SCHEDULE = NoiseSchedule.linear()
SHAPE, DIM = (4, 4, 1), 16


def predict(gaussian, schedule, x, t):
    return gaussian.eps(x, schedule.alpha_bar(t))


def exact_eps(gaussian, schedule=SCHEDULE):
    """As a pytree: what is compiled for one Gaussian serves them all."""
    return jax.tree_util.Partial(predict, gaussian, schedule)


def gaussian_images(centered, smallest, n=12_000):
    """(uint8 images, the correlated Gaussian that they were rounded from, its entropy in bits per dimension).

    Standard deviations run from `smallest` to a quarter, where black to white is 2.
    """
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    levels = rng.standard_normal((n, DIM)) * (stds := np.geomspace(0.25, smallest, DIM) * 127.5) @ basis.T + 127.5
    images = np.clip(np.round(levels), 0, 255).astype(np.uint8).reshape(n, *SHAPE)
    scale, shift = (2 / 255, 1) if centered else (1 / 255, 0)
    gaussian = DataGaussian(np.full(DIM, 127.5 * scale - shift), basis, (stds * scale) ** 2, 0.0, SHAPE)
    return images, gaussian, float(np.mean(0.5 * np.log2(2 * np.pi * np.e * stds**2)))


def mean_of(bits):
    return float(np.mean(np.asarray(bits, np.float64)))


def analytic_bits(images, gaussian, centered):
    """-log2 of the Gaussian's mass on each image's bins, taken as density times width, per dimension."""
    x = np.asarray(datasets.to_network_range(images, centered), np.float64).reshape(len(images), DIM)
    along = (x - gaussian.mean) @ gaussian.eigenvectors
    nats = 0.5 * (along**2 / gaussian.eigenvalues + np.log(2 * np.pi * gaussian.eigenvalues)).mean(axis=1)
    return (nats - np.log(likelihood.bin_width(centered))) / np.log(2)


def looseness(variances):
    """What the bound adds to the entropy of Gaussian data, bits per dimension: each true step's KL from its model.

    x_{t-1} given x_t has variance beta_t V_{t-1} / V_t along a direction in which x_t has variance V_t.
    """
    ab = np.concatenate([[1], SCHEDULE.alpha_bars])[:, None]
    marginal = ab * variances + 1 - ab
    ratio = marginal[:-1] / marginal[1:]
    return float(0.5 * (ratio - 1 - np.log(ratio)).sum(axis=0).mean() / np.log(2))


@pytest.mark.parametrize(("centered", "smallest"), [(True, 0.24), (False, 0.05)])
def test_both_routes_reach_the_entropy_of_gaussian_data(centered, smallest):
    """A lost Jacobian, an offset for another range or 256 bins for 255, a time shifted by one, a term left out.

    The images' own surprise is known, and is the entropy on average; compared image by image, their choice cancels.
    """
    images, gaussian, entropy = gaussian_images(centered, smallest)
    keys, eps_fn = jax.random.split(jax.random.key(1), len(images)), exact_eps(gaussian)
    surprise = analytic_bits(images, gaussian, centered)
    assert mean_of(surprise) == pytest.approx(entropy, abs=0.01)
    few = slice(500)
    ode = likelihood.ode_bits(eps_fn, SCHEDULE, images[few], keys[few], centered, exact=True) - surprise[few]
    assert mean_of(ode) + entropy == pytest.approx(entropy, abs=0.01)
    bound = sum(likelihood.bound_bits(eps_fn, SCHEDULE, images, keys, centered).values()) - surprise
    assert mean_of(bound) + entropy == pytest.approx(entropy + looseness(gaussian.eigenvalues), abs=0.01)
    if centered:
        assert looseness(gaussian.eigenvalues) < 0.01
        assert mean_of(bound) + entropy == pytest.approx(entropy, abs=0.01)


def test_each_image_has_the_density_of_data_with_the_noise_of_the_first_time():
    """Errors that average out, and the bias that the module states: each image by itself, for data as thin as noise."""
    images, gaussian, _ = gaussian_images(True, smallest=0.01, n=40)
    offsets = []

    def middle(key, shape, minval, maxval):  # the centre of the bin in place of a place in it
        offsets.append((minval, maxval))
        return jnp.zeros(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", middle)
        keys = jax.random.split(jax.random.key(1), len(images))
        found = likelihood.ode_bits.__wrapped__(exact_eps(gaussian), SCHEDULE, images, keys, True, exact=True)
    assert offsets == [(-0.5, 0.5)]
    blurred = gaussian.eigenvalues + (1 - SCHEDULE.alpha_bars[0]) / SCHEDULE.alpha_bars[0]
    expected = analytic_bits(images, DataGaussian(gaussian.mean, gaussian.eigenvectors, blurred, 0.0, SHAPE), True)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_a_pixel_known_to_be_black_costs():
    """The reasons that the module gives for the difference of the routes: its numbers, 1.7 against 0.6 + 0.49 bits."""
    black = DataGaussian(np.full(DIM, -1.0), np.eye(DIM), np.zeros(DIM), 0.0, SHAPE)
    images, keys = np.zeros((500, *SHAPE), np.uint8), jax.random.split(jax.random.key(3), 500)
    ode = likelihood.ode_bits(exact_eps(black), SCHEDULE, images, keys, True, exact=True)
    assert mean_of(ode) == pytest.approx(1.71, abs=0.01)
    terms = likelihood.bound_bits(exact_eps(black), SCHEDULE, images, keys, True)
    assert mean_of(terms["L_0"]) == pytest.approx(0.616, abs=0.001)
    assert mean_of(terms["L_t"]) == pytest.approx(0.486, abs=0.001)


def test_hutchinson_is_unbiased():
    """A probe of another variance, or one probe for all images: paired differences from the exact divergence."""
    images, gaussian, _ = gaussian_images(True, smallest=0.02, n=500)
    keys, eps_fn = jax.random.split(jax.random.key(2), len(images)), exact_eps(gaussian)
    exact, estimated = (likelihood.ode_bits(eps_fn, SCHEDULE, images, keys, True, exact) for exact in (True, False))
    difference = np.asarray(estimated) - np.asarray(exact)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(images))
    assert difference.std() > 0.01


def test_terms_of_the_bound_on_gaussian_data():
    """A wrong weight, variance or time in one term, made up for in another: on variance s^2 each is known by itself."""
    s2, n = 0.02, 2000
    gaussian = DataGaussian(np.zeros(DIM), np.eye(DIM), np.full(DIM, s2), 0.0, SHAPE)
    levels = np.random.default_rng(0).standard_normal((n, *SHAPE)) * s2**0.5 * 127.5 + 127.5
    images = np.round(levels).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), n)
    terms = likelihood.bound_bits(exact_eps(gaussian), SCHEDULE, images, keys, True)

    betas, ab = SCHEDULE.betas, SCHEDULE.alpha_bars
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
    """Bins that overlap or leave gaps, closed ends, or probabilities cut off or NaN far from the mean."""
    levels = jnp.arange(256, dtype=jnp.uint8)
    logs = np.asarray(likelihood.log_probability(levels, jnp.full(256, mean), jnp.asarray(scale), centered), np.float64)
    assert np.isfinite(logs).all()
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-3)
    centres = np.asarray(datasets.to_network_range(levels, centered))
    assert abs(centres[np.argmax(logs)] - np.clip(mean, centres[0], centres[-1])) <= max(1.01 / 255, 3 * scale)


def measured(config, batch_size):
    """Bits of ten digits, a function of the config alone."""
    config.eval.batch_size = batch_size
    images = datasets.load(config, "train").images[:10]
    gaussian = DataGaussian(np.linspace(-1, 1, 64), np.eye(64), np.linspace(2, 0.1, 64), 0.0, (8, 8, 1))
    schedule = NoiseSchedule.linear(num_timesteps=50)
    bits = likelihood.measure(config, exact_eps(gaussian, schedule), schedule, images)
    return [bits[name][value] for name in likelihood.ROWS for value in ("mean", "standard_error")]


def test_same_bits_for_any_batch_size_and_device_count(config, tmp_path):
    """Noise tied to a place in the batch or to a device, padding that is counted, steps shared with other images."""
    alone = measured(config, 10)
    code = f"""
import numpy as np, jax
from configs.ddpm import digits
from tests.test_likelihood import measured
assert jax.device_count() == 4
np.save({str(tmp_path / "four.npy")!r}, measured(digits.get_config(), 3))
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | flags, check=True, cwd=files.REPOSITORY)
    np.testing.assert_allclose(np.load(tmp_path / "four.npy"), alone, rtol=1e-4)


def test_eval_prints_both_routes_and_names_the_split(config, tmp_path, capsys, monkeypatch):
    """Bits that are printed and not kept, or of training images that pass for others."""
    monkeypatch.setattr(run_lib.checkpoints, "require", lambda *_: 1)
    monkeypatch.setattr(run_lib.checkpoints, "load_ema", lambda *_: (1, None, None))
    monkeypatch.setattr(run_lib, "make_eps_fn", lambda *_: jax.tree_util.Partial(lambda x, t: 0.5 * x))
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
