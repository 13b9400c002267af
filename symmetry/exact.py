"""Exact diffusion models of points and of mixtures of isotropic Gaussians: their score, potential and fixed points."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float
from scipy.optimize import brentq

MOST_ITERATIONS = 100_000

Point = Float[Array, "dim"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The data distribution sum_k w_k N(m_k, v_k I). A component with v_k = 0 is a point.

    At alpha_bar the noised data are a mixture of the same kind, with means sqrt(ab) m_k and variances ab v_k + 1 - ab.
    `eps` takes batches of x and alpha_bar. In the other methods x is one vector, and alpha_bar is a scalar in (0, 1).
    beta is the rate of the diffusion at that time. Fixed points do not depend on beta.

    Attributes:
      means: [components, dim].
      variances: [components], at least 0. If all are below 2, the potential has a minimum at every time.
      weights: [components], positive, with sum 1.
    """

    means: ArrayLike
    variances: ArrayLike
    weights: ArrayLike

    @classmethod
    def points(cls, points: npt.ArrayLike) -> "Mixture":
        """Makes the mixture of equally likely points, one per row. Raises ValueError if the array is not 2-D."""
        points = np.asarray(points)
        if points.ndim != 2:
            raise ValueError(f"expected points [K, d], got an array of shape {list(points.shape)}")
        return cls(points, np.zeros(len(points)), np.full(len(points), 1 / len(points)))

    def log_density(self, x: Point, alpha_bar: ArrayLike) -> Float[Array, ""]:
        """Returns log p_t(x), normalised."""
        return jax.nn.logsumexp(self._log_joint(x, alpha_bar))

    def responsibilities(self, x: Point, alpha_bar: ArrayLike) -> Float[Array, "components"]:
        """Returns the posterior probability of each component, given the noised value x."""
        return jax.nn.softmax(self._log_joint(x, alpha_bar))

    def score(self, x: Point, alpha_bar: ArrayLike) -> Point:
        """Returns the gradient of log p_t at x."""
        return self.responsibilities(x, alpha_bar) @ self._component_scores(x, alpha_bar)

    def potential(self, x: Point, alpha_bar: ArrayLike, beta: ArrayLike = 1.0) -> Float[Array, ""]:
        """Returns u(x) = -beta (|x|^2 / 4 + log p_t(x)). The drift of generation is minus the gradient of u."""
        return -beta * (x @ x / 4 + self.log_density(x, alpha_bar))

    def drift(self, x: Point, alpha_bar: ArrayLike, beta: ArrayLike = 1.0) -> Point:
        """Returns the drift of generation, beta (x / 2 + score)."""
        return beta * (x / 2 + self.score(x, alpha_bar))

    def hessian(self, x: Point, alpha_bar: ArrayLike, beta: ArrayLike = 1.0) -> Float[Array, "dim dim"]:
        """Returns the Hessian of the potential at x.

        A fixed point of the drift is a minimum of the potential if the Hessian there is positive definite.
        """
        weights = self.responsibilities(x, alpha_bar)
        scores = self._component_scores(x, alpha_bar)
        score = weights @ scores
        curvature = (weights / self._noised_variances(alpha_bar)).sum() - 0.5
        return beta * (curvature * jnp.eye(x.size) + jnp.outer(score, score) - (weights * scores.T) @ scores)

    def eps(self, x: Float[Array, "batch ..."], alpha_bar: Float[Array, "batch"]) -> Float[Array, "batch ..."]:
        """Returns the exact noise prediction for each x, which has `dim` values in any shape."""
        scores = jax.vmap(self.score)(x.reshape(len(x), -1), alpha_bar)
        return (-jnp.sqrt(1 - alpha_bar)[:, None] * scores).reshape(x.shape)

    def minima(self, alpha_bar: float) -> Float[np.ndarray, "minima dim"]:
        """Returns the minima of the potential that descent reaches from the component means and from the origin.

        The computation is in float64. Minima that are closer than 1e-5 to each other count as one.
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

    def splitting_alpha_bars(self) -> Float[np.ndarray, "dim"]:
        """Finds the alpha_bar at which each eigenvalue of the Hessian at the origin turns negative.

        The roots are found in float64. They are ascending: the first direction to become unstable in generation comes
        first. The result is NaN for an eigenvalue that stays positive. The origin is a fixed point at all times if the
        means have equal norm and their weighted sum is zero.
        """
        with jax.enable_x64(True):
            mixture = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self)
            dim = mixture.means.shape[1]
            return np.array([_sign_change(mixture, direction) for direction in range(dim)])

    def _noised_variances(self, alpha_bar: ArrayLike) -> Float[Array, "components"]:
        return alpha_bar * jnp.asarray(self.variances) + 1 - alpha_bar

    def _component_scores(self, x: Point, alpha_bar: ArrayLike) -> Float[Array, "components dim"]:
        """Returns the score of each noised component."""
        return (jnp.sqrt(alpha_bar) * jnp.asarray(self.means) - x) / self._noised_variances(alpha_bar)[:, None]

    def _log_joint(self, x: Point, alpha_bar: ArrayLike) -> Float[Array, "components"]:
        """Returns log w_k N(x; sqrt(ab) m_k, (ab v_k + 1 - ab) I) for each component."""
        variances = self._noised_variances(alpha_bar)
        squares = ((x - jnp.sqrt(alpha_bar) * jnp.asarray(self.means)) ** 2).sum(axis=1)
        return jnp.log(jnp.asarray(self.weights)) - (squares / variances + x.size * jnp.log(2 * np.pi * variances)) / 2


def _sign_change(mixture: Mixture, direction: int) -> float:
    """Finds the alpha_bar at which an eigenvalue of the Hessian at the origin turns negative; NaN if there is none."""

    def curvature(alpha_bar: float) -> float:
        return float(_curvatures(mixture, alpha_bar)[direction])

    low = 1e-6
    high = 1 - 1e-6
    if not curvature(low) > 0 > curvature(high):
        return np.nan
    return brentq(curvature, low, high, xtol=1e-13)


@jax.jit
def _curvatures(mixture: Mixture, alpha_bar: ArrayLike) -> Float[Array, "dim"]:
    """Returns the eigenvalues of the Hessian at the origin, ascending."""
    return jnp.linalg.eigvalsh(mixture.hessian(jnp.zeros_like(mixture.means[0]), alpha_bar))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def _descend(mixture: Mixture, x: Point, alpha_bar: ArrayLike) -> tuple[Point, Bool[Array, ""]]:
    """Returns (the fixed point that descent from x reaches, whether it is a minimum of the potential).

    The method is majorise-minimise: x <- sqrt(ab) sum_k a_k m_k / (sum_k a_k - 1/2), where a_k is responsibility_k /
    noised variance_k. Freezing the responsibilities gives a quadratic that bounds the potential from above and equals
    it at x. The step goes to the minimum of this quadratic, so the potential never increases. The step and the
    drift have the same fixed points.
    """

    def step(state):
        count, x, _ = state
        rates = mixture.responsibilities(x, alpha_bar) / mixture._noised_variances(alpha_bar)
        better = jnp.sqrt(alpha_bar) * rates @ mixture.means / (rates.sum() - 0.5)
        return count + 1, better, jnp.abs(better - x).max()

    def unfinished(state):
        count, _, change = state
        return (count < MOST_ITERATIONS) & (change > 1e-14)

    x = jax.lax.while_loop(unfinished, step, (0, x, jnp.inf))[1]
    return x, jnp.linalg.eigvalsh(mixture.hessian(x, alpha_bar))[0] > 0
