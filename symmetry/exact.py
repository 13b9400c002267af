"""Data whose score, potential and fixed points are known exactly: points, and mixtures of round Gaussians."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.optimize import brentq

MOST_ITERATIONS = 100_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Data from sum_k w_k N(m_k, v_k I), in any dimension; v_k = 0 makes them K points.

    Noised to alpha_bar it is again such a mixture: means theta m_k, theta = sqrt(ab), and variances ab v_k + 1 - ab.
    Methods take one x [d] and a scalar alpha_bar in (0, 1), but for `eps`; beta is the rate of the diffusion at that
    time, and 1 measures time in its own units: no fixed point depends on it.

    Attributes:
      means: [K, d].
      variances: [K], at least 0; the potential has minima at every time only if all are below 2.
      weights: [K], positive, of sum 1.
    """

    means: ArrayLike
    variances: ArrayLike
    weights: ArrayLike

    @classmethod
    def points(cls, points: ArrayLike) -> "Mixture":
        """K points [K, d], equally likely. Raises ValueError for any other rank."""
        points = np.asarray(points)
        if points.ndim != 2:
            raise ValueError(f"expected points [K, d], got an array of shape {list(points.shape)}")
        return cls(points, np.zeros(len(points)), np.full(len(points), 1 / len(points)))

    def log_density(self, x: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """log p_t(x), normalised."""
        return jax.nn.logsumexp(self._log_joint(x, alpha_bar))

    def shares(self, x: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """[K], the probability that x is the noised value of each component."""
        return jax.nn.softmax(self._log_joint(x, alpha_bar))

    def score(self, x: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """[d], the gradient of log p_t."""
        return self.shares(x, alpha_bar) @ self._pulls(x, alpha_bar)

    def potential(self, x: jax.Array, alpha_bar: ArrayLike, beta: ArrayLike = 1.0) -> jax.Array:
        """u(x) = -beta (|x|^2 / 4 + log p_t(x)): the generative drift is minus its gradient."""
        return -beta * (x @ x / 4 + self.log_density(x, alpha_bar))

    def drift(self, x: jax.Array, alpha_bar: ArrayLike, beta: ArrayLike = 1.0) -> jax.Array:
        """[d], beta (x / 2 + score)."""
        return beta * (x / 2 + self.score(x, alpha_bar))

    def hessian(self, x: jax.Array, alpha_bar: ArrayLike, beta: ArrayLike = 1.0) -> jax.Array:
        """[d, d], of the potential: x is a minimum where the drift is zero and this is positive definite."""
        shares, pulls = self.shares(x, alpha_bar), self._pulls(x, alpha_bar)
        score = shares @ pulls
        flat = (shares / self._noised_variances(alpha_bar)).sum() - 0.5
        return beta * (flat * jnp.eye(x.size) + jnp.outer(score, score) - (shares * pulls.T) @ pulls)

    def eps(self, x: jax.Array, alpha_bar: ArrayLike) -> jax.Array:
        """The exact noise prediction for x [B, ...] of d values each and alpha_bar [B]."""
        scores = jax.vmap(self.score)(x.reshape(len(x), -1), alpha_bar)
        return (-jnp.sqrt(1 - alpha_bar)[:, None] * scores).reshape(x.shape)

    def minima(self, alpha_bar: float) -> np.ndarray:
        """[n, d], the minima of the potential that descent reaches from the components and from the origin.

        Computed in float64. Solutions nearer to each other than 1e-5 count as one.
        """
        with jax.enable_x64(True):
            mixture = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self)
            starts = jnp.concatenate([jnp.zeros_like(mixture.means[:1]), jnp.sqrt(alpha_bar) * mixture.means])
            reached, stable = _descend(mixture, starts, jnp.asarray(alpha_bar, float))
        found = np.empty((0, starts.shape[1]))
        for x in np.asarray(reached)[np.asarray(stable)]:
            if not (np.linalg.norm(found - x, axis=1) < 1e-5).any():
                found = np.append(found, [x], axis=0)
        return found

    def splitting_alpha_bars(self) -> np.ndarray:
        """[d], where each eigenvalue of the Hessian at the origin turns negative, found by bisection in float64.

        Ascending, so the direction that splits first on the way from noise comes first; NaN where none does. The
        origin is a fixed point at all times if the means sum to zero, weighted, and are of equal norm.
        """
        with jax.enable_x64(True):
            mixture = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self)

            def crossing(direction):
                ends, curvature = (1e-6, 1 - 1e-6), lambda alpha_bar: float(_curvatures(mixture, alpha_bar)[direction])
                return brentq(curvature, *ends, xtol=1e-13) if curvature(ends[0]) > 0 > curvature(ends[1]) else np.nan

            return np.array([crossing(direction) for direction in range(mixture.means.shape[1])])

    def _noised_variances(self, alpha_bar):
        return alpha_bar * jnp.asarray(self.variances) + 1 - alpha_bar

    def _pulls(self, x, alpha_bar):
        """[K, d], the score of each noised component."""
        return (jnp.sqrt(alpha_bar) * jnp.asarray(self.means) - x) / self._noised_variances(alpha_bar)[:, None]

    def _log_joint(self, x, alpha_bar):
        """[K], log w_k N(x; theta m_k, (ab v_k + 1 - ab) I)."""
        variances = self._noised_variances(alpha_bar)
        squares = ((x - jnp.sqrt(alpha_bar) * jnp.asarray(self.means)) ** 2).sum(axis=1)
        return jnp.log(jnp.asarray(self.weights)) - (squares / variances + x.size * jnp.log(2 * np.pi * variances)) / 2


@jax.jit
def _curvatures(mixture: Mixture, alpha_bar: ArrayLike) -> jax.Array:
    """[d], the eigenvalues of the Hessian at the origin, ascending."""
    return jnp.linalg.eigvalsh(mixture.hessian(jnp.zeros_like(mixture.means[0]), alpha_bar))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def _descend(mixture: Mixture, x: jax.Array, alpha_bar: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """(x followed downhill to rest, whether that is a minimum), by x <- theta sum_k a_k m_k / (sum_k a_k - 1/2).

    a_k = share_k / noised variance_k. A fixed point of this is one of the drift, and no step raises the potential:
    with the shares held, u has an upper bound that is quadratic in x and touches it at x, and the step goes to the
    bound's minimum.
    """

    def step(state):
        count, x, _ = state
        rates = mixture.shares(x, alpha_bar) / mixture._noised_variances(alpha_bar)
        better = jnp.sqrt(alpha_bar) * rates @ mixture.means / (rates.sum() - 0.5)
        return count + 1, better, jnp.abs(better - x).max()

    def moves(state):
        count, _, change = state
        return (count < MOST_ITERATIONS) & (change > 1e-14)

    x = jax.lax.while_loop(moves, step, (0, x, jnp.inf))[1]
    return x, jnp.linalg.eigvalsh(mixture.hessian(x, alpha_bar))[0] > 0
