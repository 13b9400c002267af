"""On a trained network: its central fixed point followed back from noise, and the times at which growth begins.

All is in y = x - sqrt(ab) m, m the data's mean: the drift y / 2 - eps / sigma is zero at the fixed point, near y = 0 at
first. Its Jacobian is (P - (1 + ab) / 2) / sigma^2, where P = I - sigma d eps / dx is ab / (1 - ab) times the
covariance of x_0 given x, for a perfect network. Eigenvalues are sought for P, whose leading ones stand out where the
Jacobian's are all near -1/2, and only through derivatives along directions: no matrix is formed.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.scipy.sparse.linalg import gmres
from jax.typing import ArrayLike
from scipy.interpolate import CubicSpline

from diffusion import EpsFn, NoiseSchedule

ITERATIONS = 100
NEWTON_STEPS = 20
LOBPCG_STEPS = 20
SETTLED = 1e-4  # the largest drift per sqrt(d) that counts as none

OneImage = Callable[[jax.Array], jax.Array]  # [H, W, C] to [H, W, C]


class Followed(NamedTuple):
    """A fixed point at n times."""

    points: jax.Array  # [n, H, W, C], y
    residuals: jax.Array  # [n], the norm of the drift there per sqrt(d); above SETTLED, Newton's method found no zero
    growth: jax.Array  # [n, k], the leading eigenvalues of the drift's Jacobian per unit of beta, descending
    asymmetry: jax.Array  # [n], |P v - P^T v| / |P v + P^T v| over their eigenvectors v: 0 for a true gradient


@functools.partial(jax.jit, static_argnames="num_eigenvalues")
def follow(
    eps_fn: EpsFn, schedule: NoiseSchedule, mean: jax.Array, times: jax.Array, num_eigenvalues: int, rng: jax.Array
) -> Followed:
    """The fixed point at `times` [n], descending from where it is stable and near the mean [H, W, C] of the data.

    Found at the first time by iteration from the mean; then Newton's method goes on from the time before, its linear
    systems solved by GMRES, and stays with the point when it becomes unstable. LOBPCG goes on from the eigenvectors
    before. eps_fn is a pytree (see `models.make_eps_fn`). Raises ValueError unless 5 num_eigenvalues < H W C.
    """
    schedule, times = _in_dtype(schedule, mean.dtype), jnp.asarray(times, mean.dtype)

    def eps_at(t):
        return _eps_of_one(eps_fn, schedule.signal(t) * mean, t)

    def one_time(carry, t):
        y, vectors = carry
        eps = eps_at(t)
        y, residual = _newton(lambda y: y / 2 - eps(y) / schedule.sigma(t), y)
        growth, vectors, asymmetry = _leading_growth(eps, schedule, t, y, vectors)
        return (y, vectors), Followed(y, residual, growth, asymmetry)

    y = _iterate(eps_at(times[0]), schedule, times[0], jnp.zeros_like(mean))
    vectors = jax.random.normal(rng, (mean.size, num_eigenvalues), mean.dtype)
    return jax.lax.scan(one_time, (y, vectors), times)[1]


@functools.partial(jax.jit, static_argnames="num_eigenvalues")
def typical_growth(
    eps_fn: EpsFn, schedule: NoiseSchedule, x0: jax.Array, times: jax.Array, num_eigenvalues: int, rng: jax.Array
) -> jax.Array:
    """[n, B, k], the leading eigenvalues of the drift's Jacobian where samples are: at noised images x0 [B, H, W, C].

    A network has never seen an input as quiet as the fixed point; these it was trained on. Noise is the same at all
    `times` [n]. For Gaussian data both are the same.
    """
    schedule = _in_dtype(schedule, x0.dtype)
    noise_rng, vector_rng = jax.random.split(rng)
    noise = jax.random.normal(noise_rng, x0.shape, x0.dtype)

    def one_time(vectors, t):
        eps = _eps_of_one(eps_fn, 0, t)
        x_t = schedule.diffuse(x0, t, noise)
        growth, vectors, _ = jax.vmap(lambda x, v: _leading_growth(eps, schedule, t, x, v))(x_t, vectors)
        return vectors, growth

    start = jax.random.normal(vector_rng, (len(x0), x0[0].size, num_eigenvalues), x0.dtype)
    return jax.lax.scan(one_time, start, jnp.asarray(times, x0.dtype))[1]


def critical_times(times: ArrayLike, growth: ArrayLike) -> np.ndarray:
    """[k], the t from which on, downwards, each column of growth [n, k] is positive for longest, between the times [n].

    times descend. Between them growth is taken to be cubic, but not across rows that hold NaN. NaN where a column
    never turns positive.
    """
    times, growth = np.asarray(times, np.float64)[::-1], np.asarray(growth, np.float64)[::-1]
    known = np.isfinite(growth).all(axis=1)
    pieces = np.split(np.arange(len(times)), np.flatnonzero(np.diff(known)) + 1)
    pieces = [piece for piece in pieces if known[piece[0]] and len(piece) > 1]
    return np.array([_longest_growth([CubicSpline(times[p], column[p]) for p in pieces]) for column in growth.T])


def _longest_growth(pieces: Sequence[CubicSpline]) -> float:
    """The upper end of the longest stretch on which a spline is positive, if it turns positive there; else NaN."""
    stretches = []
    for growth in pieces:
        ends = np.concatenate([growth.x[:1], growth.roots(extrapolate=False), growth.x[-1:]])
        stretches += [(b - a, b, b < growth.x[-1]) for a, b in itertools.pairwise(ends) if growth((a + b) / 2) > 0]
    _, start, turns = max(stretches, default=(0, np.nan, False))
    return start if turns else np.nan


def _in_dtype(schedule, dtype):
    return jax.tree.map(lambda table: jnp.asarray(table, dtype), schedule)


def _eps_of_one(eps_fn: EpsFn, offset: ArrayLike, t: jax.Array) -> OneImage:
    return lambda y: eps_fn((offset + y)[None], t[None])[0]


def _iterate(eps: OneImage, schedule: NoiseSchedule, t: jax.Array, y: jax.Array) -> jax.Array:
    """y <- 2 (y - sigma eps) / (1 + ab), damped by half: its fixed points are the drift's, and attract where stable."""

    def step(_, y):
        return y / 2 + (y - schedule.sigma(t) * eps(y)) / (1 + schedule.alpha_bar(t))

    return jax.lax.fori_loop(0, ITERATIONS, step, y)


def _newton(drift: OneImage, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the zero of the drift that Newton's method reaches from y, its residual); the best point where it reaches none.

    A step that makes the drift larger is not taken, and the next is a quarter as long.
    """

    def size(drift):
        return jnp.linalg.norm(drift) / np.sqrt(y.size)

    def step(state):
        count, y, residual, length = state
        value, jacobian = jax.linearize(drift, y)
        change, _ = gmres(jacobian, -value, tol=1e-3, restart=20, maxiter=2)
        candidate = y + length * change
        new_residual = size(drift(candidate))
        better = new_residual < residual
        y, residual = jnp.where(better, candidate, y), jnp.where(better, new_residual, residual)
        return count + 1, y, residual, jnp.where(better, jnp.minimum(2 * length, 1), length / 4)

    def unsettled(state):
        return (state[0] < NEWTON_STEPS) & (state[2] > SETTLED / 10)

    start = 0, y, size(drift(y)), jnp.ones((), y.dtype)
    _, y, residual, _ = jax.lax.while_loop(unsettled, step, start)
    return y, residual


def _leading_growth(
    eps: OneImage, schedule: NoiseSchedule, t: jax.Array, y: jax.Array, vectors: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(growth [k], eigenvectors [d, k], asymmetry) of the Jacobian's symmetric part at y, LOBPCG going on from vectors.

    The symmetric part, since a true score is a gradient: what is not symmetric is the network's error.
    """
    _, tangent = jax.linearize(eps, y)
    cotangent = jax.linear_transpose(tangent, y)

    def apply(derivative, vectors):
        return jax.vmap(lambda v: v - schedule.sigma(t) * derivative(v.reshape(y.shape)).ravel(), 1, 1)(vectors)

    def both_ways(vectors):
        return apply(tangent, vectors), apply(lambda v: cotangent(v)[0], vectors)

    tolerance = 1e-3 / y.size  # in LOBPCG's unit: relative residuals of 1e-2, so eigenvalues good to about 1e-4
    values, vectors, _ = lobpcg_standard(lambda v: sum(both_ways(v)) / 2, vectors, LOBPCG_STEPS, tolerance)
    forward, backward = both_ways(vectors)
    asymmetry = jnp.linalg.norm(forward - backward) / jnp.linalg.norm(forward + backward)
    return (values - (1 + schedule.alpha_bar(t)) / 2) / schedule.sigma(t) ** 2, vectors, asymmetry
