"""Data whose noise prediction and probability flow are known exactly, in NumPy and float64.

An image has DIM = 8 values. The first half, four values, has a Gaussian distribution. Its flow has a closed form. The
second half is distributed as a mixture of three Gaussians. Its flow is integrated numerically, with tolerance 1e-11.
The two halves are independent, so one run of a sampler tests both.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real
from scipy.integrate import solve_ivp

Rows = Float[np.ndarray, "batch dim"]
Levels = Float[np.ndarray, "#batch"]


def _log_alpha_bars() -> Float[np.ndarray, "T+1"]:
    """Returns log alpha_bar of t = -1 .. T-1. The first beta is 0.01, the others are linear as in Ho et al. (2020).

    Because of the first beta, the noise variance at t = 0 is 0.01. Errors then decrease at the rate of the sampler's
    order from about 8 steps on. With a first beta of 1e-4, they would do so only from hundreds of steps on.
    """
    betas = np.append(0.01, np.linspace(1e-4, 0.01, 960))
    return np.append(0, np.cumsum(np.log1p(-betas)))


LOG_ALPHA_BARS = _log_alpha_bars()
ALPHA_BARS = np.exp(LOG_ALPHA_BARS[1:])
LAST = len(ALPHA_BARS) - 1  # the last time, 960, which is divisible by the numbers of steps 1, 2, 4, .. 64


def alpha_bar(t: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns alpha_bar at real times from -1 to LAST. log alpha_bar is linear between integers."""
    return np.exp(np.interp(t, np.arange(-1, LAST + 1), LOG_ALPHA_BARS))


class Flow(NamedTuple):
    """A mixture of K Gaussians with weights [K], means [K, d] and diagonal covariances, given as variances [K, d]."""

    weights: Float[np.ndarray, "K"]
    means: Float[np.ndarray, "K d"]
    variances: Float[np.ndarray, "K d"]

    def draw(self, noise: Rows, ab: float) -> Rows:
        """Returns x_t at alpha_bar = ab for every row of noise. Row i belongs to component i modulo K."""
        component = np.arange(len(noise)) % len(self.weights)
        spread = np.sqrt(ab * self.variances + 1 - ab)
        return np.sqrt(ab) * self.means[component] + spread[component] * noise

    def eps(self, x: Rows, ab: Levels) -> Rows:
        """Returns the exact noise prediction, sqrt(1 - ab) sum_k r_k (x - sqrt(ab) m_k) / (ab v_k + 1 - ab)."""
        ab = np.reshape(ab, (-1, 1, 1))
        variances = ab * self.variances + 1 - ab
        centred = x[:, None] - np.sqrt(ab) * self.means
        logits = np.log(self.weights) - (centred**2 / variances + np.log(variances)).sum(axis=2) / 2
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.sqrt(1 - ab[:, 0]) * (shares[:, :, None] * centred / variances).sum(axis=1)

    def transported(self, x: Rows, ab: float, ab_end: float) -> Rows:
        """Moves x from ab to ab_end along the probability flow d(x / signal) = eps d(sigma / signal)."""
        if len(self.weights) == 1:
            scale = np.sqrt((ab_end * self.variances + 1 - ab_end) / (ab * self.variances + 1 - ab))
            return np.sqrt(ab_end) * self.means + scale * (x - np.sqrt(ab) * self.means)

        def velocity(ratio, y):
            level = 1 / (1 + ratio**2)
            return self.eps(np.sqrt(level) * y.reshape(x.shape), np.array([level])).ravel()

        ends = [np.sqrt((1 - level) / level) for level in (ab, ab_end)]
        solution = solve_ivp(velocity, ends, np.ravel(x / np.sqrt(ab)), "DOP853", ends[1:], rtol=1e-12, atol=1e-12)
        return np.sqrt(ab_end) * solution.y[:, -1].reshape(x.shape)


GAUSSIAN = Flow(np.ones(1), np.array([[0.5, -0.3, 0.8, 0.0]]), np.array([[1.5, 0.4, 0.08, 0.8]]))
MIXTURE = Flow(
    np.full(3, 1 / 3),
    np.array([[1.0, 0.2, -0.5, 0.4], [-0.8, 0.6, 0.3, 0.0], [0.1, -0.9, 0.5, -0.7]]),
    np.array([[0.1, 0.3, 0.2, 0.1], [0.2, 0.1, 0.1, 0.3], [0.1, 0.1, 0.3, 0.2]]),
)
DIM = 8
HALVES = {"Gaussian": slice(0, 4), "mixture": slice(4, 8)}


def eps(x: Rows, t: Real[np.ndarray, "#batch"]) -> Rows:
    """Returns the exact noise prediction at real times t, one for all rows or one per row."""
    ab = alpha_bar(t)
    return np.concatenate([GAUSSIAN.eps(x[:, :4], ab), MIXTURE.eps(x[:, 4:], ab)], axis=1)


def predicted_x0(x: Rows, t: int) -> Rows:
    """Returns the exact prediction of x_0 at time t."""
    ab = alpha_bar(t)
    return (x - np.sqrt(1 - ab) * eps(x, np.array([t]))) / np.sqrt(ab)


@functools.cache
def start(t: int, count: int) -> Rows:
    """Returns `count` points x_t. The Gaussian half has exactly the mean and the covariance of x_t."""
    noise = np.random.default_rng(0).standard_normal((count, DIM))
    noise -= noise.mean(axis=0)
    noise = np.linalg.solve(np.linalg.cholesky(noise.T @ noise / count), noise.T).T
    ab = alpha_bar(t)
    return np.concatenate([GAUSSIAN.draw(noise[:, :4], ab), MIXTURE.draw(noise[:, 4:], ab)], axis=1)


@functools.cache
def exact_end(t: int, count: int) -> Rows:
    """Returns `start(t, count)` moved to time 0 along the probability flow."""
    x, ab, end = start(t, count), alpha_bar(t), ALPHA_BARS[0]
    halves = [GAUSSIAN.transported(x[:, :4], ab, end), MIXTURE.transported(x[:, 4:], ab, end)]
    return np.concatenate(halves, axis=1)
