"""The schedule against its definition, and its small differences in float32 against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.diffusion import NoiseSchedule, per_image

SCHEDULE = NoiseSchedule.linear()
BETAS = np.linspace(1e-4, 0.02, 1000)


def test_linear_is_the_product_of_its_betas():
    """Catches an off-by-one in the product, in the betas' ends or between the two tables."""
    np.testing.assert_allclose(SCHEDULE.betas, BETAS, rtol=1e-15)
    np.testing.assert_allclose(SCHEDULE.alpha_bars, np.cumprod(1 - BETAS), rtol=1e-12)
    np.testing.assert_allclose(SCHEDULE.alpha_bar(np.arange(1000)), np.cumprod(1 - BETAS), rtol=1e-5)


def test_made_from_alpha_bars():
    """Catches a schedule that ignores the alpha_bars it is given, as when a foreign table is to be matched."""
    alpha_bars = np.array([0.9, 0.5, 0.1])
    made = NoiseSchedule(1 - alpha_bars / np.array([1, 0.9, 0.5]), alpha_bars)
    np.testing.assert_allclose(made.alpha_bar(np.array([-1, 0, 1, 2])), [1, 0.9, 0.5, 0.1], rtol=1e-6)


def test_clean_data():
    """At t = -1 nothing is noise; catches an index that wraps around to T."""
    assert SCHEDULE.alpha_bar(-1) == 1
    assert SCHEDULE.signal(-1) == 1
    assert SCHEDULE.sigma(-1) == 0
    assert SCHEDULE.half_log_snr(-1) == np.inf


def test_between_integers_log_alpha_bar_is_linear():
    """Catches truncation of float times, and the ends of the table read wrongly."""
    half = np.arange(-0.5, 999)
    between = (SCHEDULE.log_alpha_bars[:-1] + SCHEDULE.log_alpha_bars[1:]) / 2
    np.testing.assert_allclose(SCHEDULE.log_alpha_bar(half), between, rtol=1e-5)
    np.testing.assert_allclose(SCHEDULE.alpha_bar(999), SCHEDULE.alpha_bars[-1], rtol=1e-5)


def test_float32_keeps_the_digits_of_small_noise():
    """Catches 1 - ab: next to clean data in float32 it would be wrong in the fourth digit."""
    t = np.arange(20)
    exact = np.sqrt(-np.expm1(np.cumsum(np.log1p(-BETAS))[t]))
    assert SCHEDULE.sigma(t).dtype == jnp.float32
    np.testing.assert_allclose(SCHEDULE.sigma(t), exact, rtol=1e-6)
    exact_lambda = np.log(np.sqrt(np.cumprod(1 - BETAS))[t] / exact)
    np.testing.assert_allclose(SCHEDULE.half_log_snr(t), exact_lambda, rtol=1e-6)


def test_time_at_inverts_half_log_snr():
    """Catches an inverse that is one step off or interpolates something else."""
    with jax.enable_x64(True):
        t = np.array([-1, 0, 0.25, 1, 500.5, 998.9, 999])
        np.testing.assert_allclose(SCHEDULE.time_at(SCHEDULE.half_log_snr(t)), t, atol=1e-9)


@pytest.mark.parametrize("t", [0, 500, 999, jnp.array([0, 400, 999])])
def test_predict_x0_undoes_diffuse(t):
    """Catches signal and sigma exchanged or t read per pixel rather than per image."""
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
    x_t = SCHEDULE.diffuse(x0, t, noise)
    np.testing.assert_allclose(SCHEDULE.predict_x0(x_t, t, noise), x0, atol=1e-4)
    ab = per_image(jnp.asarray(SCHEDULE.alpha_bars, jnp.float32)[t], x0)
    np.testing.assert_allclose(x_t, jnp.sqrt(ab) * x0 + jnp.sqrt(1 - ab) * noise, atol=1e-5)


@pytest.mark.parametrize("t", [0, 500, 999, jnp.array([0, 400, 999])])
def test_eps_of_v_is_the_noise(t):
    """Another sign, or signal and sigma exchanged, in what a network trained on v is taken to say."""
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
    v = per_image(SCHEDULE.signal(t), x0) * noise - per_image(SCHEDULE.sigma(t), x0) * x0
    np.testing.assert_allclose(SCHEDULE.eps_of_v(SCHEDULE.diffuse(x0, t, noise), t, v), noise, atol=1e-5)


def test_a_schedule_is_a_pytree():
    """Catches a schedule that cannot be traced or that loses its table on the way through jit."""
    inside = jax.jit(lambda schedule, t: schedule.sigma(t))(SCHEDULE, 3)
    np.testing.assert_allclose(inside, SCHEDULE.sigma(3), rtol=1e-6)
