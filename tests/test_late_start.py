"""The data's Gaussian against dense linear algebra and automatic derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from errors import UserError
from sampling.late_start import DataGaussian

SHAPE, DIM = (2, 2, 3), 12
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(50, DIM)).cumsum(axis=1).reshape(50, *SHAPE) / 3 + 0.2
COVARIANCE = np.cov(IMAGES.reshape(50, DIM), rowvar=False)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def fit(rank=None):
    return DataGaussian.fit([IMAGES[:20], IMAGES[20:]], rank)


def dense(gaussian):
    """[d, d], the covariance that a DataGaussian stands for."""
    vectors = gaussian.eigenvectors
    outside = np.eye(DIM) - vectors @ vectors.T
    return vectors * gaussian.eigenvalues @ vectors.T + gaussian.residual_variance * outside


def test_fit_is_the_datas_mean_and_covariance():
    """Catches pixels in another order, or eigenpairs that do not belong together."""
    np.testing.assert_allclose(fit().mean, IMAGES.mean(axis=0).ravel(), rtol=1e-10)
    np.testing.assert_allclose(dense(fit()), COVARIANCE, atol=1e-10)
    assert (np.diff(fit().eigenvalues) <= 0).all()


def test_low_rank_keeps_the_leading_pairs_and_the_trace():
    """Catches the smallest eigenpairs kept in place of the largest, or a residual spread over d directions."""
    np.testing.assert_allclose(fit(4).eigenvalues, np.linalg.eigvalsh(COVARIANCE)[::-1][:4])
    np.testing.assert_allclose(np.trace(dense(fit(4))), np.trace(COVARIANCE))


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.9])
def test_sample_has_the_noised_datas_moments(rank, alpha_bar):
    """A draw is linear in its noise, so basis vectors show its exact moments, and that the root is symmetric."""
    gaussian = fit(rank)
    noise = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)]).reshape(DIM + 1, *SHAPE)
    draws = np.asarray(gaussian.sample(noise, alpha_bar)).reshape(DIM + 1, DIM)
    root = draws[1:] - draws[0]
    np.testing.assert_allclose(draws[0], np.sqrt(alpha_bar) * gaussian.mean, atol=1e-12)
    np.testing.assert_allclose(root.T @ root, alpha_bar * dense(gaussian) + (1 - alpha_bar) * np.eye(DIM), atol=1e-10)
    np.testing.assert_allclose(root, root.T, atol=1e-10)


@pytest.mark.parametrize("rank", [None, 4])
def test_eps_is_the_score(rank):
    """Catches a wrong factor or sign: eps = -sqrt(1 - ab) grad log density, the derivative taken by JAX."""
    gaussian, alpha_bars = fit(rank), jnp.array([0.1, 0.5, 0.99])

    def log_density(x, alpha_bar):
        covariance = alpha_bar * dense(gaussian) + (1 - alpha_bar) * jnp.eye(DIM)
        mean = jnp.sqrt(alpha_bar) * gaussian.mean
        return jax.scipy.stats.multivariate_normal.logpdf(x.ravel(), mean, covariance)

    x = jnp.asarray(IMAGES[:3])
    score = jax.jit(jax.vmap(jax.grad(log_density)))(x, alpha_bars)
    expected = -jnp.sqrt(1 - alpha_bars)[:, None, None, None] * score
    np.testing.assert_allclose(gaussian.eps(x, alpha_bars), expected, atol=1e-9)
    np.testing.assert_allclose(gaussian.eps(x, 0.5)[1], expected[1], atol=1e-9)


@pytest.mark.parametrize("rank", [None, 4])
def test_save_and_load(rank, tmp_path):
    """Catches an array left out, or an image shape that comes back as an array and so cannot be static under jit."""
    fit(rank).save(tmp_path / "gaussian.npz")
    loaded = DataGaussian.load(tmp_path / "gaussian.npz")
    assert loaded.image_shape == SHAPE
    for name in ("mean", "eigenvectors", "eigenvalues", "residual_variance"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fit(rank), name))
    x0 = jax.jit(DataGaussian.sample)(loaded, jnp.asarray(IMAGES), 0.5)
    np.testing.assert_allclose(x0, fit(rank).sample(jnp.asarray(IMAGES), 0.5), atol=1e-12)


def test_load_refuses_arrays_that_do_not_fit(tmp_path):
    """Catches statistics of another image size, which would fail much later or not at all."""
    gaussian = fit()
    stored = {name: getattr(gaussian, name) for name in ("mean", "eigenvectors", "eigenvalues", "residual_variance")}
    np.savez(tmp_path / "gaussian.npz", **stored, image_shape=(4, 4, 3))
    with pytest.raises(UserError, match="no Gaussian of images of shape"):
        DataGaussian.load(tmp_path / "gaussian.npz")


def test_errors():
    """Bad data and ranks are refused with the value in the message."""
    for batches, rank, message in [
        ([], None, "no images"),
        ([IMAGES[:1]], None, "at least 2"),
        ([IMAGES, IMAGES[:, :1]], None, r"shape \[1, 2, 3\] after images of shape \[2, 2, 3\]"),
        ([np.full((2, *SHAPE), np.nan)], None, "NaN"),
        ([IMAGES], 0, "rank=0 must be from 1 to the image dimension 12"),
        ([IMAGES], 13, "rank=13"),
    ]:
        with pytest.raises(ValueError, match=message):
            DataGaussian.fit(batches, rank)
