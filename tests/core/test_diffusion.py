"""The noise schedule against its definition, in float32 and float64, and the denoiser against exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
from configs.ddpm import digits
from core.diffusion import Denoiser, NoiseSchedule, per_image
from models import make_denoiser

SCHEDULE = NoiseSchedule.linear()
BETAS = np.linspace(1e-4, 0.02, 1000)


def test_linear_is_the_product_of_its_betas():
    """Catches an off-by-one error in the product, in the ends of the betas or between the two tables."""
    np.testing.assert_allclose(SCHEDULE.betas, BETAS, rtol=1e-15)
    np.testing.assert_allclose(SCHEDULE.alpha_bars, np.cumprod(1 - BETAS), rtol=1e-12)
    np.testing.assert_allclose(SCHEDULE.alpha_bar(np.arange(1000)), np.cumprod(1 - BETAS), rtol=1e-5)


def test_made_from_alpha_bars():
    """Catches a schedule that ignores the given alpha_bars, for example those of a foreign checkpoint."""
    alpha_bars = np.array([0.9, 0.5, 0.1])
    made = NoiseSchedule(1 - alpha_bars / np.array([1, 0.9, 0.5]), alpha_bars)
    np.testing.assert_allclose(made.alpha_bar(np.array([-1, 0, 1, 2])), [1, 0.9, 0.5, 0.1], rtol=1e-6)


def test_data_are_clean_at_minus_one():
    """Catches an index that wraps around to T - 1."""
    assert SCHEDULE.alpha_bar(-1) == 1
    assert SCHEDULE.signal(-1) == 1
    assert SCHEDULE.sigma(-1) == 0
    assert SCHEDULE.half_log_snr(-1) == np.inf


def test_between_integers_log_alpha_bar_is_linear():
    """Catches truncation of float times, and wrong values at the ends of the table."""
    half = np.arange(-0.5, 999)
    between = (SCHEDULE.log_alpha_bars[:-1] + SCHEDULE.log_alpha_bars[1:]) / 2
    np.testing.assert_allclose(SCHEDULE.log_alpha_bar(half), between, rtol=1e-5)
    np.testing.assert_allclose(SCHEDULE.alpha_bar(999), SCHEDULE.alpha_bars[-1], rtol=1e-5)


def test_float32_keeps_the_digits_of_small_noise():
    """Catches 1 - ab computed in float32, where only three digits are right close to clean data."""
    t = np.arange(20)
    exact = np.sqrt(-np.expm1(np.cumsum(np.log1p(-BETAS))[t]))
    assert SCHEDULE.sigma(t).dtype == jnp.float32
    np.testing.assert_allclose(SCHEDULE.sigma(t), exact, rtol=1e-6)
    exact_lambda = np.log(np.sqrt(np.cumprod(1 - BETAS))[t] / exact)
    np.testing.assert_allclose(SCHEDULE.half_log_snr(t), exact_lambda, rtol=1e-6)


def test_time_at_inverts_half_log_snr():
    """Catches an inverse that is one step off, or that interpolates another quantity."""
    with jax.enable_x64(True):
        t = np.array([-1, 0, 0.25, 1, 500.5, 998.9, 999])
        np.testing.assert_allclose(SCHEDULE.time_at(SCHEDULE.half_log_snr(t)), t, atol=1e-9)


@pytest.mark.parametrize("t", [0, 500, 999, jnp.array([0, 400, 999])])
def test_predict_x0_undoes_diffuse(t):
    """Catches signal and sigma exchanged, and a t that is broadcast over pixels instead of images."""
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
    x_t = SCHEDULE.diffuse(x0, t, noise)
    np.testing.assert_allclose(SCHEDULE.predict_x0(x_t, t, noise), x0, atol=1e-4)
    ab = per_image(jnp.asarray(SCHEDULE.alpha_bars, jnp.float32)[t], x0)
    np.testing.assert_allclose(x_t, jnp.sqrt(ab) * x0 + jnp.sqrt(1 - ab) * noise, atol=1e-5)


@pytest.mark.parametrize("t", [0, 500, 999, jnp.array([0, 400, 999])])
def test_eps_from_v_is_the_noise(t):
    """Catches a wrong sign, or signal and sigma exchanged."""
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
    v = per_image(SCHEDULE.signal(t), x0) * noise - per_image(SCHEDULE.sigma(t), x0) * x0
    found = Denoiser(lambda x, t: v, SCHEDULE, "v").eps(SCHEDULE.diffuse(x0, t, noise), t)
    np.testing.assert_allclose(found, noise, atol=1e-5)


def test_a_schedule_is_a_pytree():
    """Catches a schedule that cannot be traced, or that loses its table in jit."""
    inside = jax.jit(lambda schedule, t: schedule.sigma(t))(SCHEDULE, 3)
    np.testing.assert_allclose(inside, SCHEDULE.sigma(3), rtol=1e-6)


# The denoiser

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([-0.8, 0.5])
STDS = np.array([0.1, 0.3])


def posterior(x, signal, sigma):
    """Returns (E[x_0 | x], E[noise | x]) for x = signal x_0 + sigma noise, where every value of x_0 is from a mixture.

    The mixture has two Gaussians, of WEIGHTS, MEANS and STDS. Given the component, x is Gaussian with variance
    signal^2 std^2 + sigma^2, and both conditional means are linear in x.
    """
    variances = signal**2 * STDS**2 + sigma**2
    distances = x[..., None] - signal * MEANS
    logs = jnp.log(WEIGHTS) - 0.5 * jnp.log(variances) - 0.5 * distances**2 / variances
    responsibilities = jax.nn.softmax(logs)
    x0 = MEANS + signal * STDS**2 / variances * distances
    noise = sigma / variances * distances
    return (responsibilities * x0).sum(axis=-1), (responsibilities * noise).sum(axis=-1)


def mixture_denoiser():
    """Returns the exact denoiser of the mixture."""

    def eps_fn(x, t):
        signal = per_image(SCHEDULE.signal(t), x)[..., None]
        sigma = per_image(SCHEDULE.sigma(t), x)[..., None]
        _, noise = posterior(x, signal, sigma)
        return noise

    return Denoiser(eps_fn, SCHEDULE)


@pytest.mark.parametrize("sigma", [0.0101, 0.02, 0.3, 1.0, 4.0, 30.0, 150.0, jnp.array([0.02, 1.0, 30.0])])
def test_denoise_is_the_posterior_mean(sigma):
    """Catches a wrong time for sigma, x that is not scaled to the variance-preserving process, and loss of float64."""
    with jax.enable_x64(True):
        sigma = jnp.asarray(sigma, jnp.float64)
        rng = np.random.default_rng(0)
        x0 = jnp.asarray(MEANS[rng.integers(2, size=(3, 4, 4, 2))])
        x = x0 + per_image(sigma, x0) * rng.standard_normal(x0.shape)
        exact, _ = posterior(x, signal=1.0, sigma=per_image(sigma, x)[..., None])
        found = mixture_denoiser().denoise(x, sigma)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9)


def test_eps_broadcasts_t_and_passes_labels_on():
    """Catches a scalar t that reaches the network without a batch axis, an integer t, and labels that are lost."""
    calls = []

    def eps_fn(x, t, labels=None):
        calls.append((t, labels))
        return x

    x = jnp.ones((3, 2, 2, 1))
    denoiser = Denoiser(eps_fn, SCHEDULE)
    denoiser.eps(x, 7)
    denoiser.eps(x, jnp.array([1.0, 2.5, 4.0]), jnp.array([5, 6, 7]))
    denoiser.x0(x, 0, jnp.array([5, 6, 7]))
    denoiser.denoise(x, 1.0, jnp.array([5, 6, 7]))
    denoiser.output(x, 7, jnp.array([5, 6, 7]))
    times, labels = zip(*calls, strict=True)
    assert all(t.dtype == x.dtype and t.shape == (3,) for t in times)
    np.testing.assert_array_equal(times[0], [7, 7, 7])
    np.testing.assert_array_equal(times[1], [1, 2.5, 4])
    assert labels[0] is None
    for passed in labels[1:]:
        np.testing.assert_array_equal(passed, [5, 6, 7])


@pytest.fixture
def network():
    """Returns (config, graphdef, parameters) of a small network that predicts v, with parameters that are not zero."""
    config = digits.get_config()
    config.model.update(ch_mult=(1,), attn_resolutions=(), prediction="v")
    graphdef, state = losses.create_state(config)
    return config, graphdef, jax.tree.map(lambda leaf: leaf + 0.02, state.params)


def test_output_of_a_v_network_gives_its_eps(network):
    """Catches an output that is converted already, or another schedule in the conversion."""
    denoiser = make_denoiser(*network)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    t = jnp.array([0.0, 400.0, 999.0])
    v = denoiser.output(x, t)
    eps = denoiser.eps(x, t)
    signal, noise = (per_image(factor(t), x) for factor in (denoiser.schedule.signal, denoiser.schedule.sigma))
    np.testing.assert_allclose(noise * x + signal * v, eps, rtol=1e-6, atol=1e-6)
    assert jnp.abs(v - eps).max() > 0.1


def test_denoiser_compiles_once_for_all_weights(network):
    """Catches weights that are constants of the compiled function, which would be compiled again for each network."""
    config, graphdef, params = network
    traces = []

    @jax.jit
    def predict(denoiser, x):
        traces.append(None)
        return denoiser.eps(x, 400)

    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    for weights in (params, jax.tree.map(lambda leaf: 1.5 * leaf, params)):
        denoiser = make_denoiser(config, graphdef, weights)
        np.testing.assert_allclose(predict(denoiser, x), denoiser.eps(x, 400), rtol=1e-4, atol=1e-5)
    assert len(traces) == 1
