"""The data's Gaussian against dense linear algebra and automatic derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.errors import UserError
from core.moments import Moments
from sampling import late_start, sample
from sampling.late_start import DataGaussian, analytic_first_step
from sampling.time_grid import time_grid
from symmetry.exact import Mixture

SHAPE = (2, 2, 3)
DIM = 12
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(50, DIM)).cumsum(axis=1).reshape(50, *SHAPE) / 3 + 0.2
LARGE = RNG.normal(size=(40, 40, 40, 3))  # of a dimension for which the covariance is not formed
COVARIANCE = np.cov(IMAGES.reshape(50, DIM), rowvar=False)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def fit(rank=None):
    return DataGaussian.fit([IMAGES[:20], IMAGES[20:]], rank)


def dense(gaussian):
    """Returns the covariance of a DataGaussian, [d, d]."""
    vectors = gaussian.eigenvectors
    outside = np.eye(DIM) - vectors @ vectors.T
    return vectors * gaussian.eigenvalues @ vectors.T + gaussian.residual_variance * outside


def test_fit_is_the_datas_mean_and_covariance():
    """Catches pixels in another order, or eigenpairs that do not belong together."""
    np.testing.assert_allclose(fit().mean, IMAGES.mean(axis=0).ravel(), rtol=1e-10)
    np.testing.assert_allclose(dense(fit()), COVARIANCE, atol=1e-10)
    assert (np.diff(fit().eigenvalues) <= 0).all()


def test_low_rank_keeps_the_leading_pairs_and_the_trace():
    """Catches the smallest eigenpairs kept instead of the largest, or a residual divided by d directions."""
    np.testing.assert_allclose(fit(4).eigenvalues, np.linalg.eigvalsh(COVARIANCE)[::-1][:4])
    np.testing.assert_allclose(np.trace(dense(fit(4))), np.trace(COVARIANCE))


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("alpha_bar", [0.01, 0.5, 0.9])
def test_sample_has_the_noised_datas_moments(rank, alpha_bar):
    """Catches wrong moments or an asymmetric root. A sample is linear in the noise, so basis vectors show both."""
    gaussian = fit(rank)
    noise = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)]).reshape(DIM + 1, *SHAPE)
    draws = np.asarray(gaussian.sample(noise, alpha_bar)).reshape(DIM + 1, DIM)
    root = draws[1:] - draws[0]
    np.testing.assert_allclose(draws[0], np.sqrt(alpha_bar) * gaussian.mean, atol=1e-12)
    np.testing.assert_allclose(root.T @ root, alpha_bar * dense(gaussian) + (1 - alpha_bar) * np.eye(DIM), atol=1e-10)
    np.testing.assert_allclose(root, root.T, atol=1e-10)


@pytest.mark.parametrize("rank", [None, 4])
def test_carried_is_the_gaussians_own_flow(rank):
    """Catches a wrong flow. Samples from the same noise at two times lie on one path, and so do their differences.

    At alpha_bar = 1 nothing may change, even if the data do not vary in some directions.
    """
    gaussian = fit(rank)
    alpha_bars = jnp.array([0.01, 0.5, 1.0])
    noise = RNG.normal(size=(2, 3, *SHAPE))
    first, second = (gaussian.sample(part, alpha_bars) for part in noise)
    ends = gaussian.sample(noise[0], 1.0) - gaussian.sample(noise[1], 1.0)
    np.testing.assert_allclose(gaussian.carried(first - second, alpha_bars), ends, rtol=1e-9)
    flat = DataGaussian(np.zeros(DIM), np.eye(DIM), np.zeros(DIM), residual_variance=0.0, image_shape=SHAPE)
    np.testing.assert_allclose(flat.carried(noise[0], jnp.array([0.0, 0.9, 1.0]))[2], noise[0][2])
    np.testing.assert_allclose(flat.carried(noise[0], 0.9), 0, atol=1e-9)


@pytest.mark.parametrize("rank", [None, 4])
def test_eps_is_the_score(rank):
    """Catches a wrong factor or sign in eps = -sqrt(1 - ab) grad log density. JAX computes the derivative."""
    gaussian = fit(rank)
    alpha_bars = jnp.array([0.1, 0.5, 0.99])

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
    """Catches a missing array, or an image shape that is loaded as an array and so cannot be static under jit."""
    fit(rank).save(tmp_path / "gaussian.npz")
    loaded = DataGaussian.load(tmp_path / "gaussian.npz")
    assert loaded.image_shape == SHAPE
    for name in ("mean", "eigenvectors", "eigenvalues", "residual_variance"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fit(rank), name))
    x0 = jax.jit(DataGaussian.sample)(loaded, jnp.asarray(IMAGES), 0.5)
    np.testing.assert_allclose(x0, fit(rank).sample(jnp.asarray(IMAGES), 0.5), atol=1e-12)


def test_load_refuses_arrays_that_do_not_fit(tmp_path):
    """Catches statistics of another image size, which would cause an error much later or none."""
    gaussian = fit()
    stored = {name: getattr(gaussian, name) for name in ("mean", "eigenvectors", "eigenvalues", "residual_variance")}
    np.savez(tmp_path / "gaussian.npz", **stored, image_shape=(4, 4, 3))
    with pytest.raises(UserError, match="do not make a Gaussian of images of shape"):
        DataGaussian.load(tmp_path / "gaussian.npz")


def test_errors():
    """Catches bad data and ranks that are accepted, or a message without the value."""
    for batches, rank, message in [
        ([], None, "no images"),
        ([IMAGES[:1]], None, "at least 2"),
        ([IMAGES[:0]], None, "at least 2"),
        ([IMAGES[..., 0]], None, r"images of shape \[2, 2\]: they must be \[H, W, C\]"),
        ([IMAGES, IMAGES[:, :1]], None, r"batch 1: images of shape \[1, 2, 3\] after images of shape \[2, 2, 3\]"),
        ([IMAGES, IMAGES, IMAGES * np.inf], None, "batch 2 holds NaN or infinity"),
        ([IMAGES], 0, "rank=0 must be from 1 to the image dimension 12"),
        ([IMAGES], 13, "rank=13"),
        ([IMAGES[:5]], 5, "rank=5 .* below the 5 images"),
        (iter([LARGE]), 9, "give a list, or a function"),
        ([LARGE], None, "need a rank"),
        ([LARGE], 40, "rank=40 must be below the number of images, 40"),
        ([LARGE, LARGE * np.inf], 9, "batch 1 holds NaN or infinity"),
        ([LARGE, LARGE[:, :, :9]], 9, "after images of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            DataGaussian.fit(batches, rank)


def natural(num, size):
    """Returns images [num, size, size, 3] whose power falls as 1/f^2, with a mean far from zero."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) + 1 / size
    spectrum = np.fft.fft2(np.random.default_rng(1).normal(size=(num, 3, size, size))) / frequency
    return np.moveaxis(np.fft.ifft2(spectrum).real, 1, -1) + 5


def test_streamed_eigenpairs_are_those_of_the_covariance(monkeypatch):
    """Catches a mean that is not removed, too few passes, and a wrong trace, by comparison with NumPy for d = 3,072."""
    images = natural(500, 32)
    monkeypatch.setattr(late_start, "EXACT_UP_TO", 3000)
    gaussian = DataGaussian.fit(lambda: iter([images[:300], images[300:]]), rank=64)
    flat = images.reshape(500, -1)
    covariance = np.cov(flat, rowvar=False)
    expected = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(gaussian.mean, flat.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(gaussian.eigenvalues, expected[:64], rtol=0.01)
    np.testing.assert_allclose(gaussian.captured, expected[:64].sum() / expected.sum(), rtol=0.002)
    whole = gaussian.eigenvalues.sum() + gaussian.residual_variance * (3072 - 64)
    np.testing.assert_allclose(whole, np.trace(covariance), rtol=1e-10)
    vectors = gaussian.eigenvectors
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(64), atol=1e-10)
    # The leading pairs solve S v = l v.
    residual = covariance @ vectors[:, :8] - vectors[:, :8] * gaussian.eigenvalues[:8]
    assert np.linalg.norm(residual, axis=0).max() < 1e-3 * expected[0]


def test_streamed_eigenpairs_do_not_depend_on_batches_or_order(monkeypatch):
    """Catches a shift by the mean of one batch that changes the subspace, which has fewer dimensions than images."""
    images = natural(200, 16)
    monkeypatch.setattr(late_start, "EXACT_UP_TO", 700)
    one = DataGaussian.fit([images], rank=20)
    other = DataGaussian.fit([images[40:], images[:7], images[7:40]], rank=20)
    for name in ("mean", "eigenvalues", "residual_variance"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-10)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 49), max_size=6), st.randoms())
def test_exact_moments_do_not_depend_on_batches_shards_or_order(cuts, random):
    """Catches shifts of shards that are merged wrongly, or a partial batch that is counted as a full one."""
    order = list(range(50))
    random.shuffle(order)
    pieces = np.split(IMAGES.reshape(50, DIM)[order], sorted(set(cuts)))
    left = Moments(DIM)
    right = Moments(DIM)
    for i, piece in enumerate(pieces):
        (left, right)[i % 2].update(piece)
    gaussian = DataGaussian.from_moments(left.merge(right), SHAPE)
    np.testing.assert_allclose(gaussian.mean, fit().mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(dense(gaussian), COVARIANCE, atol=1e-10)


def test_scaled_pixels_are_the_images_in_the_networks_range():
    """Catches a variance scaled once instead of twice, a residual not scaled, or a shift before the scale."""
    pixels = np.random.default_rng(3).integers(0, 256, (30, *SHAPE), np.uint8)
    for rank in (None, 4):
        scaled = DataGaussian.fit([pixels], rank).scaled(2 / 255, -1)
        expected = DataGaussian.fit([pixels / 127.5 - 1], rank)
        np.testing.assert_allclose(scaled.mean, expected.mean, atol=1e-12)
        np.testing.assert_allclose(dense(scaled), dense(expected), atol=1e-12)


def test_isotropic_keeps_the_mean_and_the_trace():
    """Catches a baseline with another mean or total variance than the Gaussian's."""
    mixture = fit().mixture().isotropic()
    noise = jnp.asarray(RNG.normal(size=(5, *SHAPE)))
    scale = np.sqrt(0.3 * np.trace(COVARIANCE) / DIM + 0.7)
    expected = scale * noise + np.sqrt(0.3) * mixture.mean.reshape(SHAPE)
    np.testing.assert_allclose(mixture.sample(noise, np.zeros(5, int), 0.3), expected, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 4])
def test_predictions_along_the_way_down(rank):
    """Catches eps or x_0 at another point than the one to which `sample` maps the noise. At that point they agree."""
    gaussian = fit(rank=rank)
    noise = jnp.asarray(RNG.normal(size=(5, *SHAPE)))
    for ab in (0.9, 0.3, 1e-3):
        x_t = gaussian.sample(noise, ab)
        x0, eps = gaussian.predictions(noise, ab)
        np.testing.assert_allclose(eps, gaussian.eps(x_t, ab), atol=1e-10)
        np.testing.assert_allclose(np.sqrt(ab) * x0 + np.sqrt(1 - ab) * eps, x_t, atol=1e-10)


def test_clean_data_that_do_not_vary_everywhere():
    """Catches 0 / 0 for an eigenvalue of zero. With few steps, PNDM evaluates the prediction at t = -1."""
    gaussian = DataGaussian(
        np.zeros(DIM), np.eye(DIM), np.array([4.0, *[0.0] * (DIM - 1)]), residual_variance=0.0, image_shape=SHAPE
    )
    noise = jnp.asarray(RNG.normal(size=(5, *SHAPE)))
    x0, eps = gaussian.predictions(noise, 1.0)
    np.testing.assert_allclose(x0, gaussian.sample(noise, 1.0), atol=1e-12)
    np.testing.assert_array_equal(eps, 0)
    np.testing.assert_array_equal(gaussian.eps(x0, 1.0), 0)


def test_same_noise_same_picture():
    """Catches an asymmetric root, or noise in another order. DDIM takes 1000 steps on an exact mixture.

    The mean squared distance between late-start images and full DDIM from the same noise is at most a fiftieth of the
    distance between images from different noise. With one step for every t it is at most a ten-thousandth.
    """
    schedule = NoiseSchedule.linear()
    means = RNG.normal(size=(5, DIM)) / 2
    mixture = Mixture(means, np.full(5, 0.02), np.full(5, 0.2))
    values, vectors = np.linalg.eigh(np.cov(means, rowvar=False, bias=True) + 0.02 * np.eye(DIM))
    gaussian = DataGaussian(means.mean(axis=0), vectors, values, residual_variance=0.0, image_shape=SHAPE)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(64, *SHAPE)))

    @jax.jit
    def ddim(x, timesteps):
        return sample("ddim", Denoiser(lambda x, t: mixture.eps(x, schedule.alpha_bar(t)), schedule), x, timesteps)

    full = ddim(noise, time_grid(1000, 999))
    to_others = jnp.mean((full - jnp.roll(full, 1, axis=0)) ** 2)
    for t_start, n_steps, share in [(300, 50, 50), (700, 50, 50), (500, 501, 10_000), (700, 701, 10_000)]:
        late = ddim(gaussian.sample(noise, schedule.alpha_bar(t_start)), time_grid(n_steps, t_start))
        assert jnp.mean((late - full) ** 2) < to_others / share, t_start


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "heun", "unipc_3"])
def test_analytic_first_step_saves_one_evaluation(sampler):
    """Catches a network call at the first time, or a prediction that is not the one for unit Gaussian data."""
    schedule = NoiseSchedule.linear()
    calls = []

    def unit_gaussian(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0], ordered=True)
        return per_image(schedule.sigma(t), x) * x

    x = jnp.asarray(RNG.normal(size=(3, *SHAPE)))
    times = time_grid(4, 999)
    denoiser = Denoiser(unit_gaussian, schedule)
    plain = sample(sampler, denoiser, x, times)
    jax.effects_barrier()
    asked = list(calls)
    calls.clear()
    saved = sample(sampler, analytic_first_step(denoiser, times[0]), x, times)
    jax.effects_barrier()
    np.testing.assert_allclose(saved, plain, rtol=1e-12)
    assert calls == asked[1:]
