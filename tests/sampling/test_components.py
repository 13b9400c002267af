"""Mixtures of Gaussians: their fit, noise prediction and samples, and the component of each image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling import components
from sampling.components import clusters, fit_mixture
from sampling.generate import component_sequence
from sampling.late_start import DataGaussian, DataMixture

SHAPE, DIM = (3, 4, 1), 12
RNG = np.random.default_rng(0)
SPREADS = RNG.normal(size=(3, DIM, DIM)) * 12
CENTRES = RNG.normal(size=(3, DIM)) * 30 + 128
LABELS = np.repeat([0, 1, 2], [600, 300, 100])
IMAGES = np.clip(CENTRES[LABELS] + np.einsum("ni,nij->nj", RNG.normal(size=(1000, DIM)), SPREADS[LABELS]), 0, 255)
IMAGES = IMAGES.astype(np.uint8).reshape(-1, *SHAPE)
ORDER = RNG.permutation(1000)
IMAGES, LABELS = IMAGES[ORDER], LABELS[ORDER]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def fitted(rank=None):
    return fit_mixture(DataGaussian.fit([IMAGES], rank), IMAGES, LABELS)


def dense(mixture, component):
    """Returns the mean and covariance of a component as dense arrays."""
    basis, rotation = mixture.eigenvectors, mixture.rotations[component]
    block = len(rotation)
    inside = np.diag(mixture.variances[component])
    inside[:block, :block] = rotation @ inside[:block, :block] @ rotation.T
    outside = mixture.residual_variances[component] * (np.eye(DIM) - basis @ basis.T)
    return mixture.mean + basis @ mixture.means[component], basis @ inside @ basis.T + outside


@pytest.fixture
def unshrunk(monkeypatch):
    monkeypatch.setattr(components, "_shrinkage", lambda parts, _: np.zeros(len(parts)))


@pytest.mark.parametrize("rank", [None, 4])
def test_components_have_the_moments_of_their_images(unshrunk, rank):
    """Catches a wrong origin of sums, means without their part outside the eigenvectors, and swapped labels."""
    mixture = fitted(rank)
    np.testing.assert_allclose(mixture.weights, np.bincount(LABELS) / 1000)
    for component in range(3):
        vectors = IMAGES[component == LABELS].reshape(-1, DIM).astype(float)
        mean, covariance = dense(mixture, component)
        np.testing.assert_allclose(mean, vectors.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(np.trace(covariance), np.trace(np.cov(vectors, rowvar=False)), rtol=1e-5)
        leading = mixture.eigenvectors
        expected = leading.T @ np.cov(vectors, rowvar=False) @ leading
        np.testing.assert_allclose(leading.T @ covariance @ leading, expected, rtol=1e-4, atol=1e-2)


def test_small_components_are_shrunk_towards_the_pooled_covariance():
    """Catches a singular covariance of few images, and a large component that is shrunk as much as a small one."""
    few = np.concatenate([np.flatnonzero(LABELS == 0), np.flatnonzero(LABELS == 2)[:8]])
    gaussian = DataGaussian.fit([IMAGES[few]])
    mixture = fit_mixture(gaussian, IMAGES[few], (LABELS[few] == 2).astype(int))
    own = [np.cov(IMAGES[c == LABELS].reshape(-1, DIM).astype(float), rowvar=False) for c in (0, 2)]
    assert np.linalg.eigvalsh(dense(mixture, 1)[1]).min() > 1
    assert np.abs(dense(mixture, 0)[1] - own[0]).max() < 0.05 * own[0].max()


def test_one_component_is_the_gaussian_itself():
    """Catches different samples or predictions of a Gaussian and of the mixture with one component."""
    gaussian = DataGaussian.fit([IMAGES])
    mixture = fit_mixture(gaussian, IMAGES, np.zeros(1000, int))
    noise = RNG.normal(size=(5, *SHAPE))
    np.testing.assert_allclose(mixture.sample(noise, np.zeros(5, int), 0.4), gaussian.sample(noise, 0.4), rtol=1e-6)
    np.testing.assert_allclose(mixture.eps(noise, 0.4), gaussian.eps(noise, 0.4), rtol=1e-6)
    assert mixture.rotations.shape == (1, 0, 0)


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("alpha_bar", [0.02, 0.6])
def test_draws_have_the_moments_of_their_component(rank, alpha_bar):
    """Catches wrong moments or an asymmetric root. A sample is linear in the noise, so basis vectors show both."""
    mixture = fitted(rank).scaled(2 / 255, -1.0)
    noise = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)]).reshape(DIM + 1, *SHAPE)
    for component in range(3):
        draws = np.asarray(mixture.sample(noise, np.full(DIM + 1, component), alpha_bar)).reshape(DIM + 1, DIM)
        mean, covariance = dense(mixture, component)
        root = draws[1:] - draws[0]
        np.testing.assert_allclose(draws[0], np.sqrt(alpha_bar) * mean, atol=1e-10)
        np.testing.assert_allclose(root @ root, alpha_bar * covariance + (1 - alpha_bar) * np.eye(DIM), atol=1e-10)
        np.testing.assert_allclose(root, root.T, atol=1e-10)


def density(mixture, x, alpha_bar):
    """Computes log sum_c w_c N(x; sqrt(ab) m_c, ab S_c + (1 - ab) I) with dense linear algebra."""
    joint = []
    for component, weight in enumerate(mixture.weights):
        mean, covariance = dense(mixture, component)
        noised = alpha_bar * covariance + (1 - alpha_bar) * jnp.eye(DIM)
        logpdf = jax.scipy.stats.multivariate_normal.logpdf(x.ravel(), jnp.sqrt(alpha_bar) * mean, noised)
        joint.append(jnp.log(weight) + logpdf)
    return jax.nn.logsumexp(jnp.stack(joint))


@pytest.mark.parametrize("rank", [None, 4])
def test_eps_is_the_score_of_the_mixture(rank):
    """Catches wrong posterior weights, and a lost part outside the eigenvectors. JAX computes the derivative."""
    mixture = fitted(rank).scaled(2 / 255, -1.0)
    alpha_bars = jnp.array([0.05, 0.5, 0.9])
    x = mixture.sample(RNG.normal(size=(3, *SHAPE)), np.array([0, 1, 2]), alpha_bars) * 0.8
    score = jax.vmap(jax.grad(lambda x, ab: density(mixture, x, ab)))(x, alpha_bars)
    expected = -jnp.sqrt(1 - alpha_bars)[:, None, None, None] * score
    np.testing.assert_allclose(mixture.eps(x, alpha_bars), expected, atol=1e-8)
    logs = jax.nn.logsumexp(mixture.log_joint(x, alpha_bars), axis=1)
    np.testing.assert_allclose(logs, jax.vmap(lambda x, ab: density(mixture, x, ab))(x, alpha_bars), atol=1e-8)


@pytest.mark.parametrize("alpha_bar", [1e-5, 0.5, 0.999, 1 - 1e-6])
def test_eps_is_safe_in_float32(alpha_bar):
    """Catches posterior weights that overflow near clean data, where densities differ by e^(10^6)."""
    mixture = fitted().scaled(2 / 255, -1.0)
    alpha_bar = float(np.float32(alpha_bar))
    x = np.asarray(mixture.sample(RNG.normal(size=(30, *SHAPE)), np.arange(30) % 3, alpha_bar))
    single = mixture.eps(jnp.asarray(x, jnp.float32), jnp.float32(alpha_bar))
    assert single.dtype == jnp.float32
    exact = mixture.eps(np.asarray(x, np.float32).astype(np.float64), alpha_bar)
    np.testing.assert_allclose(single, exact, atol=2e-3 * float(jnp.abs(exact).max()))


def test_predictions_are_those_of_the_flow_through_the_draw():
    """Catches predictions at a wrong point: for one component they equal the noise prediction at the sample."""
    mixture = fitted().scaled(2 / 255, -1.0).restricted([1])
    noise, component = RNG.normal(size=(4, *SHAPE)), np.zeros(4, int)
    x0, eps = mixture.predictions(noise, component, 0.3)
    x = mixture.sample(noise, component, 0.3)
    np.testing.assert_allclose(eps, mixture.eps(x, 0.3), atol=1e-9)
    np.testing.assert_allclose(np.sqrt(0.3) * x0 + np.sqrt(0.7) * eps, x, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=40).map(lambda w: np.array(w) / sum(w)),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3000),
    first=st.integers(0, 3000),
)
def test_components_of_samples_are_stratified(weights, seed, count, first):
    """Catches frequencies that differ from the weights, and a component that depends on the batch or on N."""
    whole = component_sequence(weights, seed, 0, first + count)
    np.testing.assert_array_equal(component_sequence(weights, seed, first, count), whole[first:])
    shares = np.bincount(whole, minlength=len(weights))
    assert np.abs(shares - len(whole) * weights).max() < 2


def test_components_do_not_follow_a_period():
    """Catches a sequence i % K for equal weights, with which each group of the jackknife would be a single class."""
    sequence = component_sequence(np.full(10, 0.1), 0, 0, 2000)
    group = np.bincount(sequence[::10], minlength=10)
    assert group.max() < 40


def test_small_clusters_are_dissolved():
    """Catches a component with few images, and an unused cluster number."""
    images = np.concatenate([np.full((300, 2, 2, 1), 20), np.full((200, 2, 2, 1), 120), np.full((3, 2, 2, 1), 250)])
    images = (images + RNG.integers(0, 5, images.shape)).astype(np.uint8)
    found = clusters(DataGaussian.fit([images]), images, 3)
    sizes = np.bincount(found)
    assert sizes.min() >= components.FEWEST and sizes.sum() == 503
    assert len(set(found[500:])) == 1 and found[500] == found[300]


def test_a_component_of_one_image_is_refused():
    """Catches a covariance divided by zero."""
    with pytest.raises(ValueError, match="component 1 has 1 images"):
        fit_mixture(DataGaussian.fit([IMAGES[:20]]), IMAGES[:20], np.arange(20) // 19)


def test_arrays_come_back():
    """Catches an array that is missing in the statistics file."""
    mixture = fitted(4)
    loaded = DataMixture.of_arrays(mixture.arrays(), "file")
    assert loaded.image_shape == SHAPE
    for name, array in mixture.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], array)
