"""On a trained network: its central fixed point followed back from noise, and the times at which growth begins.

All is in y = x - sqrt(ab) m, m the data's mean: the drift y / 2 - eps / sigma is zero at the fixed point, near y = 0 at
first. Its Jacobian is (P - (1 + ab) / 2) / sigma^2, where P = I - sigma d eps / dx is ab / (1 - ab) times the
covariance of x_0 given x, for a perfect network. Eigenvalues are sought for P, whose leading ones stand out where the
Jacobian's are all near -1/2, by Lanczos's method: only through derivatives along directions, no matrix is formed.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.interpolate import CubicSpline

from core.diffusion import EpsFn, NoiseSchedule

ITERATIONS = 100
NEWTON_STEPS = 20
GMRES_BASIS = 20  # directions of the Krylov space in which a linear system is solved
LANCZOS_BASIS = 40  # and of that in which eigenvalues are sought, with 5 more for each
SETTLED = 1e-4  # the largest drift per sqrt(d) that counts as none

OnImages = Callable[[jax.Array], jax.Array]  # [B, H, W, C] to the same, each image by itself
Linear = Callable[[jax.Array], jax.Array]  # [B, d] to the same, each vector by itself


class Followed(NamedTuple):
    """A fixed point at n times."""

    points: jax.Array  # [n, H, W, C], y
    residuals: jax.Array  # [n], the norm of the drift there per sqrt(d); above SETTLED, Newton's method found no zero
    growth: jax.Array  # [n, k], the leading eigenvalues of the drift's Jacobian per unit of beta, descending
    asymmetry: jax.Array  # [n], |M - M^T| / |M + M^T|, M the part of P that was looked at: 0 for a true gradient


@functools.partial(jax.jit, static_argnames="num_eigenvalues")
def follow(
    eps_fn: EpsFn, schedule: NoiseSchedule, mean: jax.Array, times: jax.Array, num_eigenvalues: int, rng: jax.Array
) -> Followed:
    """The fixed point at `times` [n], descending from where it is stable and near the mean [H, W, C] of the data.

    Found at the first time by iteration from the mean; then Newton's method goes on from the time before, its linear
    systems solved by GMRES, and stays with the point when it becomes unstable. The search for eigenvectors goes on from
    those before. num_eigenvalues is at most H W C. eps_fn is a pytree (see `models.make_eps_fn`).
    """
    schedule, times = schedule.astype(mean.dtype), jnp.asarray(times, mean.dtype)

    def one_time(carry, t):
        y, start = carry
        eps = _eps_at(eps_fn, schedule.signal(t) * mean, t)
        y, residual = _newton(lambda y: y / 2 - eps(y) / schedule.sigma(t), y)
        growth, start, asymmetry = _leading_growth(eps, schedule, t, y, start, num_eigenvalues)
        return (y, start), Followed(y[0], residual, growth[0], asymmetry[0])

    first = _eps_at(eps_fn, schedule.signal(times[0]) * mean, times[0])
    y = _iterate(first, schedule, times[0], jnp.zeros_like(mean)[None])
    return jax.lax.scan(one_time, (y, jax.random.normal(rng, (1, mean.size), mean.dtype)), times)[1]


@functools.partial(jax.jit, static_argnames="num_eigenvalues")
def typical_growth(
    eps_fn: EpsFn, schedule: NoiseSchedule, x0: jax.Array, times: jax.Array, num_eigenvalues: int, rng: jax.Array
) -> jax.Array:
    """[n, B, k], the leading eigenvalues of the drift's Jacobian where samples are: at noised images x0 [B, H, W, C].

    A network has never seen an input as quiet as the fixed point; these it was trained on. Noise is the same at all
    `times` [n]. For Gaussian data both are the same.
    """
    schedule = schedule.astype(x0.dtype)
    noise_rng, start_rng = jax.random.split(rng)
    noise = jax.random.normal(noise_rng, x0.shape, x0.dtype)

    def one_time(starts, t):
        x_t = schedule.diffuse(x0, t, noise)
        growth, starts, _ = _leading_growth(_eps_at(eps_fn, 0, t), schedule, t, x_t, starts, num_eigenvalues)
        return starts, growth

    starts = jax.random.normal(start_rng, (len(x0), x0[0].size), x0.dtype)
    return jax.lax.scan(one_time, starts, jnp.asarray(times, x0.dtype))[1]


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


def _eps_at(eps_fn: EpsFn, offset: ArrayLike, t: jax.Array) -> OnImages:
    return lambda y: eps_fn(offset + y, jnp.full(len(y), t))


def _iterate(eps: OnImages, schedule: NoiseSchedule, t: jax.Array, y: jax.Array) -> jax.Array:
    """y <- 2 (y - sigma eps) / (1 + ab), damped by half: its fixed points are the drift's, and attract where stable."""

    def step(_, y):
        return y / 2 + (y - schedule.sigma(t) * eps(y)) / (1 + schedule.alpha_bar(t))

    return jax.lax.fori_loop(0, ITERATIONS, step, y)


def _newton(drift: OnImages, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the zero of the drift that Newton's method reaches from y [1, H, W, C], its residual); the best point where it
    reaches none.

    A step that makes the drift larger is not taken, and the next is a quarter as long.
    """

    def step(state):
        count, y, residual, change, length = state
        candidate = y + length * change
        value, jacobian = jax.linearize(drift, candidate)
        new_residual = jnp.linalg.norm(value) / np.sqrt(y.size)

        def taken():
            further = _solve(lambda v: jacobian(v.reshape(y.shape)).reshape(v.shape), -value.reshape(1, -1))
            return candidate, new_residual, further.reshape(y.shape), jnp.minimum(2 * length, 1)

        return count + 1, *jax.lax.cond(new_residual < residual, taken, lambda: (y, residual, change, length / 4))

    def unsettled(state):
        return (state[0] < NEWTON_STEPS) & (state[2] > SETTLED / 10)

    start = 0, y, jnp.asarray(jnp.inf, y.dtype), jnp.zeros_like(y), jnp.ones((), y.dtype)
    _, y, residual, _, _ = jax.lax.while_loop(unsettled, step, start)
    return y, residual


def _leading_growth(
    eps: OnImages, schedule: NoiseSchedule, t: jax.Array, y: jax.Array, start: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(growth [B, count], sum of the eigenvectors [B, d], asymmetry [B]) of the Jacobian's symmetric part at each y.

    The symmetric part, since a true score is a gradient: what is not symmetric is the network's error. Its eigenvalues
    are taken on the Krylov space of P and `start` [B, d] (Rayleigh and Ritz), for which derivatives forwards suffice:
    in a loop on a CPU a derivative backwards takes ten times as long, since XLA has only slow transposed convolutions
    there.
    """
    _, derivative = jax.linearize(eps, y)

    def apply(vectors):
        return vectors - schedule.sigma(t) * derivative(vectors.reshape(y.shape)).reshape(vectors.shape)

    basis, images = _krylov(apply, start, min(LANCZOS_BASIS + 5 * count, start.shape[1]))
    matrix = basis @ images.mT
    asymmetry = _norm(matrix - matrix.mT) / _norm(matrix + matrix.mT)
    values, turns = jnp.linalg.eigh((matrix + matrix.mT) / 2)
    values, turns = values[:, : -count - 1 : -1], turns[:, :, : -count - 1 : -1]
    growth = (values - (1 + schedule.alpha_bar(t)) / 2) / schedule.sigma(t) ** 2
    return growth, (turns.mT @ basis).sum(axis=1), asymmetry


def _norm(matrices: jax.Array) -> jax.Array:
    """[B], Frobenius's, of matrices [B, n, n]."""
    return jnp.linalg.norm(matrices, axis=(1, 2))


def _solve(apply: Linear, b: jax.Array) -> jax.Array:
    """x [1, d] with apply(x) near b: GMRES."""
    [basis], [images] = _krylov(apply, b, min(GMRES_BASIS, b.size))
    return (jnp.linalg.lstsq(images.T, b[0])[0] @ basis)[None]


def _krylov(apply: Linear, start: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """For each of the vectors [B, d]: an orthonormal basis [B, size, d] of start, apply(start), apply(apply(start)),
    ..., and apply of each of its vectors.

    A little noise leads on where that space has fewer dimensions.
    """
    noise = 1e-5 * jax.random.normal(jax.random.key(0), (size, *start.shape), start.dtype) / np.sqrt(start.shape[1])

    def step(carry, i):
        basis, vectors = carry
        vectors = _unit(vectors) + noise[i]
        for _ in range(2):  # once leaves rounding errors that a short remainder makes large
            vectors -= jnp.einsum("bk,bkd->bd", jnp.einsum("bkd,bd->bk", basis, vectors), basis)
        vectors = _unit(vectors)
        images = apply(vectors)
        return (basis.at[:, i].set(vectors), images), images

    basis = jnp.zeros((len(start), size, start.shape[1]), start.dtype)
    (basis, _), images = jax.lax.scan(step, (basis, start), jnp.arange(size))
    return basis, images.swapaxes(0, 1)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
