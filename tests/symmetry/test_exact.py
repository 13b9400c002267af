"""Exact models and closed-form critical times: every number is computed in two ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from core.diffusion import NoiseSchedule
from symmetry.critical import RULES, continuous_times, critical_alpha_bars, critical_times, times_of
from symmetry.exact import Mixture

SCHEDULE = NoiseSchedule.linear()
PLUS_MINUS = Mixture.points([[1.0], [-1.0]])
THETA_C = np.sqrt(np.sqrt(2) - 1)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def uneven_mixture(dim=3):
    rng = np.random.default_rng(0)
    return Mixture(rng.normal(size=(4, dim)), np.array([0.0, 0.1, 0.5, 1.5]), np.array([0.1, 0.2, 0.3, 0.4]))


@pytest.mark.parametrize("alpha_bar", [1e-3, 0.3, 0.9])
def test_score_drift_hessian_and_eps_are_derivatives_of_the_potential(alpha_bar):
    """Catches a wrong factor, sign or weight in a closed form. JAX differentiates the density."""
    mixture = uneven_mixture()
    x = jnp.array([0.3, -0.7, 1.1])
    beta = 2.5
    score = jax.grad(mixture.log_density)(x, alpha_bar)
    np.testing.assert_allclose(mixture.score(x, alpha_bar), score, rtol=1e-10)
    np.testing.assert_allclose(
        mixture.drift(x, alpha_bar, beta), -jax.grad(mixture.potential)(x, alpha_bar, beta), rtol=1e-9
    )
    np.testing.assert_allclose(
        mixture.hessian(x, alpha_bar, beta), jax.hessian(mixture.potential)(x, alpha_bar, beta), rtol=1e-9, atol=1e-9
    )
    eps = mixture.eps(x.reshape(1, 1, 3, 1), jnp.array([alpha_bar]))
    np.testing.assert_allclose(eps.ravel(), -np.sqrt(1 - alpha_bar) * score, rtol=1e-10)


def test_density_is_normalised():
    """Catches a wrong constant in the log density."""
    x = np.linspace(-12, 12, 4001)[:, None]
    mixture = Mixture(np.array([[-1.0], [2.0]]), np.array([0.0, 0.5]), np.array([0.3, 0.7]))
    density = np.exp(jax.vmap(mixture.log_density, (0, None))(jnp.asarray(x), 0.5))
    assert np.trapezoid(density, x[:, 0]) == pytest.approx(1, abs=1e-10)


def test_plus_and_minus_one_split_where_the_paper_says():
    """Catches a critical time that differs from the paper's theta_c, which is t = 292 on the linear schedule."""
    [alpha_bar] = PLUS_MINUS.splitting_alpha_bars()
    assert np.sqrt(alpha_bar) == pytest.approx(THETA_C, abs=1e-8)
    assert critical_times(1.0, SCHEDULE, "equal_norm") == pytest.approx(292, abs=0.5)


@pytest.mark.parametrize("theta", [0.05, 0.4, 0.6, THETA_C - 1e-3, THETA_C + 1e-3, 0.7, 0.9, 0.99])
def test_branches_solve_the_self_consistency_equation(theta):
    """Catches a lost or false minimum. There is one before the critical time, then two, as in the paper's equation."""

    def inconsistency(x):
        return 2 * theta / (1 + theta**2) * np.tanh(theta * x / (1 - theta**2)) - x

    minima = np.sort(PLUS_MINUS.minima(theta**2).ravel())
    if theta < THETA_C:
        np.testing.assert_allclose(minima, [0], atol=1e-8)
    else:
        root = brentq(inconsistency, 1e-3, 2, xtol=1e-14)
        np.testing.assert_allclose(minima, [-root, root], atol=1e-8)


def equal_norm_points(rng, dim):
    """Returns points of equal norm and zero mean: random directions and their opposites, some of them repeated."""
    directions = rng.normal(size=(dim + 2, dim)) * np.geomspace(1, 0.3, dim)
    directions *= rng.uniform(0.3, 3) / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.concatenate([directions, -directions, directions[:1], -directions[:1]])


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_closed_form_is_the_sign_change_of_the_hessian(dim):
    """Catches a wrong closed form. For every eigenvalue l, the critical time is also found as a root."""
    points = equal_norm_points(np.random.default_rng(dim), dim)
    eigenvalues = np.linalg.eigvalsh(points.T @ points / len(points))[::-1]
    found = Mixture.points(points).splitting_alpha_bars()
    np.testing.assert_allclose(found, critical_alpha_bars(eigenvalues, "equal_norm"), atol=1e-8)
    np.testing.assert_allclose(found, np.sqrt(1 + eigenvalues**2) - eigenvalues, atol=1e-8)


def test_minima_multiply_direction_by_direction():
    """Catches a lost minimum. A rectangle of points has one, then two along its long side, then four."""
    rectangle = Mixture.points([[a, b] for a in (-2.0, 2.0) for b in (-0.5, 0.5)])
    first, second = critical_alpha_bars([4.0, 0.25], "equal_norm")
    middles = [first / 2, (first + second) / 2, (second + 1) / 2]
    assert [len(rectangle.minima(alpha_bar)) for alpha_bar in middles] == [1, 2, 4]


def test_a_direction_without_data_never_splits():
    """Catches a critical time for a direction without variance."""
    assert np.isnan(Mixture.points([[1.0, 0.0], [-1.0, 0.0]]).splitting_alpha_bars()).tolist() == [False, True]


def test_gaussian_data_become_unstable_where_the_rule_says():
    """Catches a wrong rule 1 / (l - 1). The critical time is also the sign change of x / 2 + score for N(0, l)."""
    for variance in (2.5, 10.0, 300.0):
        broad = Mixture(np.zeros((1, 1)), np.array([variance]), np.ones(1))
        assert broad.splitting_alpha_bars()[0] == pytest.approx(critical_alpha_bars(variance, "gaussian"), abs=1e-8)


def test_speciation_is_where_the_signal_equals_the_noise():
    """Catches a wrong rule 1 / l."""
    assert critical_alpha_bars(25.0, "speciation") * 25 == pytest.approx(1)


@given(st.floats(0, 1e6), st.sampled_from(list(RULES)))
@settings(deadline=None, max_examples=50)
def test_any_eigenvalue_has_a_time_or_none(eigenvalue, rule):
    """Catches overflow, an alpha_bar outside (0, 1], or a time that does not match its alpha_bar."""
    alpha_bar = critical_alpha_bars(eigenvalue, rule)
    t = critical_times(eigenvalue, SCHEDULE, rule)
    least = {"equal_norm": 0, "gaussian": 2, "speciation": 1}[rule]
    assert np.isnan(alpha_bar) == np.isnan(t) == (eigenvalue < least)
    if eigenvalue >= least:
        assert 0 < alpha_bar <= 1 and -1 <= t <= 999
        if alpha_bar > SCHEDULE.alpha_bars[-1]:
            assert SCHEDULE.alpha_bar(t) == pytest.approx(float(alpha_bar), rel=1e-9)


def test_broader_directions_split_earlier():
    """Catches a rule by which more variance does not give an earlier critical time."""
    eigenvalues = np.geomspace(2.1, 1000, 20)
    for rule in RULES:
        assert (np.diff(critical_times(eigenvalues, SCHEDULE, rule)) > 0).all()


def test_continuous_time_inverts_the_sde():
    """Catches the wrong root of the quadratic, and continuous times far from the discrete ones."""
    s = np.array([1e-6, 0.1, 0.5, 1.0])
    alpha_bars = np.exp(-0.1 * s - 0.5 * 19.9 * s**2)
    np.testing.assert_allclose(continuous_times(alpha_bars, SCHEDULE), s, rtol=1e-9)
    assert continuous_times(1.0, SCHEDULE) == 0
    middle = SCHEDULE.alpha_bars[[200, 500, 800]]
    np.testing.assert_allclose(continuous_times(middle, SCHEDULE) * 1000, times_of(middle, SCHEDULE) + 1, atol=3)


def test_unknown_rule_and_wrong_points_are_refused():
    """Catches a KeyError, and points that are read as one-dimensional."""
    with pytest.raises(ValueError, match="rule 'unknown' is not known; choose from equal_norm"):
        critical_times(1.0, SCHEDULE, "unknown")
    with pytest.raises(ValueError, match=r"expected points \[K, d\]"):
        Mixture.points([1.0, -1.0])
