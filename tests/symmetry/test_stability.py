"""Fixed points, growth rates and agreement of exact models that replace networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.diffusion import Denoiser, NoiseSchedule
from sampling.late_start import DataGaussian
from symmetry import critical
from symmetry.agreement import unexplained_eps
from symmetry.exact import Mixture
from symmetry.stability import SETTLED, critical_times, follow, typical_growth

SCHEDULE = NoiseSchedule.linear()
SHAPE = (4, 4, 1)
DIM = 16
TIMES = np.arange(999, 19, -20)
EIGENVALUES = np.array([9.0, 2.0, 0.5])


def denoiser_of(model):
    """Returns the denoiser of an exact model (a pytree with a method `eps` of x and alpha_bar), in float32."""

    def eps(model, x, t):
        return model.eps(x, SCHEDULE.alpha_bar(t))

    return Denoiser(jax.tree_util.Partial(eps, jax.tree.map(jnp.float32, model)), SCHEDULE)


def box(mean):
    """Returns the corners of a box along three oblique axes. Their covariance has the eigenvalues EIGENVALUES."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 3)))[0] * np.sqrt(EIGENVALUES)
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
    return signs @ axes.T + mean


def test_fixed_point_of_an_exact_mixture_splits_at_the_closed_form():
    """Catches Newton's method on another branch, a wrong sign or scale of the Jacobian, or an error in the mean."""
    denoiser = denoiser_of(Mixture.points(box(0.7)))
    followed = follow(denoiser, jnp.full(SHAPE, 0.7), TIMES, num_eigenvalues=3, rng=jax.random.key(0))
    assert (np.asarray(followed.residuals) < SETTLED).all()
    np.testing.assert_allclose(followed.points, 0, atol=1e-3)
    measured = critical_times(TIMES, followed.growth)
    np.testing.assert_allclose(measured, critical.critical_times(EIGENVALUES, SCHEDULE, "equal_norm"), rtol=1e-3)


def test_newton_finds_a_fixed_point_away_from_the_mean():
    """Catches a fixed point that stays at the mean. With two points of unequal weight it must leave the mean."""
    points = np.zeros((2, DIM))
    points[:, 0] = [1.0, -2.0]
    mixture = Mixture(points, np.zeros(2), np.array([2 / 3, 1 / 3]))
    followed = follow(denoiser_of(mixture), jnp.zeros(SHAPE), TIMES, num_eigenvalues=1, rng=jax.random.key(0))
    assert np.abs(followed.points).max() > 0.3
    for t, y in zip(TIMES, np.asarray(followed.points), strict=True):
        drift = mixture.drift(jnp.asarray(y.ravel()), float(SCHEDULE.alpha_bar(t)))
        np.testing.assert_allclose(drift, 0, atol=5e-3)


def test_gaussian_data_grow_alike_everywhere():
    """Catches growth rates that differ from 1/2 - 1 / (1 + ab (l - 1)), at the fixed point or at noised images."""
    images = np.random.default_rng(0).normal(size=(500, DIM)) * np.sqrt([8.0, 4.0, *[0.3] * 14]) + 0.5
    gaussian = DataGaussian.fit([images.reshape(-1, *SHAPE)])
    denoiser = denoiser_of(gaussian)
    mean = jnp.asarray(gaussian.mean.reshape(SHAPE), jnp.float32)
    key = jax.random.key(0)
    ab = np.asarray(SCHEDULE.alpha_bar(TIMES))[:, None]
    expected = 0.5 - 1 / (1 + ab * (gaussian.eigenvalues[:2] - 1))
    followed = follow(denoiser, mean, TIMES, num_eigenvalues=2, rng=key)
    typical = typical_growth(
        denoiser, jnp.asarray(images[:3].reshape(3, *SHAPE), jnp.float32), TIMES, num_eigenvalues=2, rng=key
    )
    np.testing.assert_allclose(followed.growth, expected, atol=1e-4)
    np.testing.assert_allclose(typical, np.broadcast_to(expected[:, None], typical.shape), atol=1e-4)
    np.testing.assert_allclose(followed.asymmetry, 0, atol=1e-3)
    predicted = critical.critical_times(gaussian.eigenvalues[:2], SCHEDULE, "gaussian")
    np.testing.assert_allclose(critical_times(TIMES, followed.growth), predicted, rtol=1e-3)


def test_what_is_not_symmetric_is_reported():
    """Catches an asymmetric part that changes the growth, or that is not reported.

    R is antisymmetric, so P = (1 - sigma) I - sigma R has complex eigenvalues. The norm of its symmetric part is
    4 |1 - sigma|, that of its antisymmetric part 5 sqrt(2) sigma.
    """
    r = np.zeros((DIM, DIM), np.float32)
    r[0, 1] = 5.0
    r[1, 0] = -5.0
    eps_fn = jax.tree_util.Partial(lambda r, x, t: x + (x.reshape(1, -1) @ r).reshape(x.shape), jnp.asarray(r))
    followed = follow(
        Denoiser(eps_fn, SCHEDULE), jnp.zeros(SHAPE), np.array([500]), num_eigenvalues=1, rng=jax.random.key(0)
    )
    sigma = SCHEDULE.sigma(500)
    np.testing.assert_allclose(followed.growth, 0.5 - 1 / sigma, atol=1e-3)
    np.testing.assert_allclose(followed.asymmetry, 5 * np.sqrt(2) * sigma / (4 * (1 - sigma)), rtol=1e-3)


def test_critical_times_open_the_longest_growth():
    """Catches a short positive interval that is chosen, a use of rows with NaN, and an interval without a start."""
    times = np.arange(100.0, 0, -5)
    columns = [50 - times, (70 - times) * (times - 30) * (90 - times), times - 200, 200 - times]
    growth = np.stack(columns, axis=1)
    growth[3] = np.nan
    np.testing.assert_allclose(critical_times(times, growth), [50, 70, np.nan, np.nan], rtol=1e-9)
    gap = np.where((times > 40) & (times < 70), np.nan, times - 55)[:, None] * -1
    assert np.isnan(critical_times(times, gap)).all()  # it becomes positive between rows with NaN
    flicker = np.where(times > 85, 0.1 * np.sin(times), 40 - times)[:, None]
    assert critical_times(times, flicker)[0] == pytest.approx(40, abs=0.01)
    assert np.isnan(critical_times(times, np.full((20, 2), np.nan))).all()


def test_agreement_is_exact_for_gaussian_data_and_fades_for_points():
    """Catches a wrong denominator or time. The result is 0 for Gaussian data, and 1/4 if the network doubles eps."""
    x0 = jnp.asarray(box(0.2).reshape(-1, *SHAPE), jnp.float32)
    gaussian = DataGaussian.fit([np.asarray(x0)])
    times = np.array([900, 400, 100, 5])
    key = jax.random.key(0)
    exact = jax.tree_util.Partial(lambda gaussian, x, t: gaussian.eps(x, SCHEDULE.alpha_bar(t)), gaussian)
    np.testing.assert_allclose(
        unexplained_eps(Denoiser(exact, SCHEDULE), (gaussian,), x0, times=times, rng=key), 0, atol=1e-10
    )
    [unexplained] = unexplained_eps(denoiser_of(Mixture.points(box(0.2))), (gaussian,), x0, times=times, rng=key)
    assert unexplained[0] < 1e-5 and (np.diff(unexplained[:3]) > 0).all() and unexplained[2] > 0.01
    double = jax.tree_util.Partial(lambda gaussian, x, t: 2 * gaussian.eps(x, SCHEDULE.alpha_bar(t)), gaussian)
    fractions = unexplained_eps(Denoiser(double, SCHEDULE), (gaussian,), x0, times=times, rng=key)
    np.testing.assert_allclose(fractions, 0.25, rtol=1e-5)
