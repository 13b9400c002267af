"""Fixed points, growth and agreement, with exact models in the network's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.diffusion import NoiseSchedule
from sampling.late_start import DataGaussian
from symmetry import critical
from symmetry.agreement import gaussian_agreement
from symmetry.exact import Mixture
from symmetry.stability import SETTLED, critical_times, follow, typical_growth

SCHEDULE = NoiseSchedule.linear()
SHAPE, DIM = (4, 4, 1), 16
TIMES = np.arange(999, 19, -20)
EIGENVALUES = np.array([9.0, 2.0, 0.5])


def as_network(mixture):
    """An exact mixture as a callable pytree, like a network."""

    def eps(mixture, schedule, x, t):
        return mixture.eps(x, schedule.alpha_bar(t))

    return jax.tree_util.Partial(eps, jax.tree.map(jnp.float32, mixture), SCHEDULE)


def box(mean):
    """All corners of a box along three oblique axes: points of equal norm, with EIGENVALUES about their mean."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 3)))[0] * np.sqrt(EIGENVALUES)
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
    return signs @ axes.T + mean


def test_fixed_point_of_an_exact_mixture_splits_at_the_closed_form():
    """Newton on another branch, a Jacobian of another sign or scale, or a mean that is not moved along: to 1e-3."""
    network, mean = as_network(Mixture.points(box(0.7))), jnp.full(SHAPE, 0.7)
    followed = follow(network, SCHEDULE, mean, TIMES, 3, jax.random.key(0))
    assert (np.asarray(followed.residuals) < SETTLED).all()
    np.testing.assert_allclose(followed.points, 0, atol=1e-3)
    measured = critical_times(TIMES, followed.growth)
    np.testing.assert_allclose(measured, critical.critical_times(EIGENVALUES, SCHEDULE, "equal_norm"), rtol=1e-3)


def test_newton_finds_a_fixed_point_away_from_the_mean():
    """Two points of unequal weight: the fixed point leaves the mean, to where the exact drift is zero."""
    points = np.zeros((2, DIM))
    points[:, 0] = [1.0, -2.0]
    mixture = Mixture(points, np.zeros(2), np.array([2 / 3, 1 / 3]))
    followed = follow(as_network(mixture), SCHEDULE, jnp.zeros(SHAPE), TIMES, 1, jax.random.key(0))
    assert np.abs(followed.points).max() > 0.3
    for t, y in zip(TIMES, np.asarray(followed.points), strict=True):
        drift = mixture.drift(jnp.asarray(y.ravel()), float(SCHEDULE.alpha_bar(t)))
        np.testing.assert_allclose(drift, 0, atol=5e-3)


def test_gaussian_data_grow_alike_everywhere():
    """For Gaussian data growth is 1/2 - 1 / (1 + ab (l - 1)) at the fixed point and at every noised image."""
    images = np.random.default_rng(0).normal(size=(500, DIM)) * np.sqrt([8.0, 4.0, *[0.3] * 14]) + 0.5
    gaussian = DataGaussian.fit([images.reshape(-1, *SHAPE)])
    eps_fn = jax.tree_util.Partial(
        lambda gaussian, schedule, x, t: gaussian.eps(x, schedule.alpha_bar(t)),
        jax.tree.map(jnp.float32, gaussian),
        SCHEDULE,
    )
    mean, key = jnp.asarray(gaussian.mean.reshape(SHAPE), jnp.float32), jax.random.key(0)
    ab = np.asarray(SCHEDULE.alpha_bar(TIMES))[:, None]
    expected = 0.5 - 1 / (1 + ab * (gaussian.eigenvalues[:2] - 1))
    followed = follow(eps_fn, SCHEDULE, mean, TIMES, 2, key)
    typical = typical_growth(eps_fn, SCHEDULE, jnp.asarray(images[:3].reshape(3, *SHAPE), jnp.float32), TIMES, 2, key)
    np.testing.assert_allclose(followed.growth, expected, atol=1e-4)
    np.testing.assert_allclose(typical, np.broadcast_to(expected[:, None], typical.shape), atol=1e-4)
    np.testing.assert_allclose(followed.asymmetry, 0, atol=1e-3)
    predicted = critical.critical_times(gaussian.eigenvalues[:2], SCHEDULE, "gaussian")
    np.testing.assert_allclose(critical_times(TIMES, followed.growth), predicted, rtol=1e-3)


def test_what_is_not_symmetric_is_reported():
    """The symmetric part of a rotation is nothing: eigenvalues of the whole matrix would not be real.

    P is (1 - sigma) I - sigma R: its symmetric part has norm 4 |1 - sigma|, the rest 5 sqrt(2) sigma.
    """
    turn = np.zeros((DIM, DIM), np.float32)
    turn[0, 1], turn[1, 0] = 5.0, -5.0
    eps_fn = jax.tree_util.Partial(lambda turn, x, t: x + (x.reshape(1, -1) @ turn).reshape(x.shape), jnp.asarray(turn))
    followed = follow(eps_fn, SCHEDULE, jnp.zeros(SHAPE), [500], 1, jax.random.key(0))
    sigma = SCHEDULE.sigma(500)
    np.testing.assert_allclose(followed.growth, 0.5 - 1 / sigma, atol=1e-3)
    np.testing.assert_allclose(followed.asymmetry, 5 * np.sqrt(2) * sigma / (4 * (1 - sigma)), rtol=1e-3)


def test_critical_times_open_the_longest_growth():
    """A flicker above zero taken for the start, times of unsettled rows used, or a column that starts out positive."""
    times = np.arange(100.0, 0, -5)
    columns = [50 - times, (70 - times) * (times - 30) * (90 - times), times - 200, 200 - times]
    growth = np.stack(columns, axis=1)
    growth[3] = np.nan
    np.testing.assert_allclose(critical_times(times, growth), [50, 70, np.nan, np.nan], rtol=1e-9)
    gap = np.where((times > 40) & (times < 70), np.nan, times - 55)[:, None] * -1
    assert np.isnan(critical_times(times, gap)).all()  # it became positive unseen
    flicker = np.where(times > 85, 0.1 * np.sin(times), 40 - times)[:, None]
    assert critical_times(times, flicker)[0] == pytest.approx(40, abs=0.01)
    assert np.isnan(critical_times(times, np.full((20, 2), np.nan))).all()


def test_agreement_is_exact_for_gaussian_data_and_fades_for_points():
    """Unexplained variance of another denominator or time; 0 for a Gaussian, 1 where the Gaussian predicts nothing."""
    x0 = jnp.asarray(box(0.2).reshape(-1, *SHAPE), jnp.float32)
    gaussian = DataGaussian.fit([np.asarray(x0)])
    times = np.array([900, 400, 100, 5])
    exact = jax.tree_util.Partial(lambda gaussian, x, t: gaussian.eps(x, SCHEDULE.alpha_bar(t)), gaussian)
    np.testing.assert_allclose(
        gaussian_agreement(exact, gaussian, SCHEDULE, x0, times, jax.random.key(0)), 0, atol=1e-10
    )
    unexplained = gaussian_agreement(
        as_network(Mixture.points(box(0.2))), gaussian, SCHEDULE, x0, times, jax.random.key(0)
    )
    assert unexplained[0] < 1e-5 and (np.diff(unexplained[:3]) > 0).all() and unexplained[2] > 0.01
    double = jax.tree_util.Partial(lambda gaussian, x, t: 2 * gaussian.eps(x, SCHEDULE.alpha_bar(t)), gaussian)
    shares = gaussian_agreement(double, gaussian, SCHEDULE, x0, times, jax.random.key(0))
    np.testing.assert_allclose(shares, 0.25, rtol=1e-5)
