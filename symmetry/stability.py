"""Stability of a trained network: follows its central fixed point over time, and computes growth rates there.

All quantities are for y = x - sqrt(ab) m, where m is the mean of the data. A fixed point is a zero of the drift
y / 2 - eps / sigma. Near pure noise there is a single fixed point, close to y = 0. The Jacobian of the drift is
(P - (1 + ab) / 2) / sigma^2, where P = I - sigma d eps / dx. For a perfect network, P is ab / (1 - ab) times the
covariance of x_0 given x. The largest eigenvalues of P are computed by Lanczos's method from Jacobian-vector products,
without forming a matrix. P is used because its leading eigenvalues are well separated, but most eigenvalues of the
Jacobian are close to -1/2.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real
from scipy.interpolate import CubicSpline

from core.diffusion import Denoiser, NoiseSchedule
from core.shapes import Images, RandomKey

ITERATIONS = 100
NEWTON_STEPS = 20
LANCZOS_BASIS = 40  # the Krylov space for k eigenvalues has dimension LANCZOS_BASIS + 5 k
SETTLED = 1e-4  # a point is a fixed point if the root mean square of the drift there is below this
GMRES = lineax.GMRES(rtol=0, atol=0, restart=20, max_steps=2)
"""One cycle of 20 directions, without a tolerance. max_steps is 2, because lineax counts the initial residual, too."""

Image = Float[Array, "height width channels"]
Rows = Float[Array, "batch dim"]
"""Images as vectors, one per row."""

OnImages = Callable[[Images], Images]
"""A function of a batch of images that acts on each image separately."""

Linear = Callable[[Rows], Rows]
"""A linear function of a batch of vectors that acts on each vector separately."""


class Followed(NamedTuple):
    """A fixed point at several times."""

    points: Float[Array, "times height width channels"]  # y
    residuals: Float[Array, "times"]  # root mean square of the drift; above SETTLED, no fixed point was found
    growth: Float[Array, "times eigenvalues"]  # leading eigenvalues of the drift's Jacobian for beta = 1, descending
    asymmetry: Float[Array, "times"]  # |M - M^T| / |M + M^T| of P in the Krylov space; 0 if eps / sigma is a gradient


@functools.partial(jax.jit, static_argnames="num_eigenvalues")
def follow(
    denoiser: Denoiser, mean: Image, times: Real[Array, "times"], num_eigenvalues: int, rng: RandomKey
) -> Followed:
    """Follows the central fixed point through descending times, also after it has become unstable.

    At the first time, the fixed point must be stable and close to the mean of the data. It is found there by
    fixed-point iteration from the mean. At each time, the fixed point is then computed by Newton's method, which solves
    linear systems with GMRES. Newton's method starts from the fixed point at the previous time, and the search for
    eigenvectors starts from the eigenvectors at the previous time.

    mean: the mean of the data, in the network's range.
    num_eigenvalues: at most the number of values of an image.
    """
    denoiser = denoiser.astype(mean.dtype)
    schedule = denoiser.schedule
    times = jnp.asarray(times, mean.dtype)

    def one_time(carry, t):
        y, start = carry
        eps = _eps_at(denoiser, schedule.signal(t) * mean, t)
        y, residual = _newton(lambda y: y / 2 - eps(y) / schedule.sigma(t), y)
        growth, start, asymmetry = _leading_growth(eps, schedule, t, y=y, start=start, count=num_eigenvalues)
        return (y, start), Followed(points=y[0], residuals=residual, growth=growth[0], asymmetry=asymmetry[0])

    first = _eps_at(denoiser, schedule.signal(times[0]) * mean, times[0])
    y = _iterate(first, schedule, times[0], y=jnp.zeros_like(mean)[None])
    start = jax.random.normal(rng, (1, mean.size), mean.dtype)
    _, followed = jax.lax.scan(one_time, (y, start), times)
    return followed


@functools.partial(jax.jit, static_argnames="num_eigenvalues")
def typical_growth(
    denoiser: Denoiser, x0: Images, times: Real[Array, "times"], num_eigenvalues: int, rng: RandomKey
) -> Float[Array, "times batch eigenvalues"]:
    """Computes the leading eigenvalues of the drift's Jacobian at noised images, for beta = 1, descending.

    The network is trained on inputs like noised images. The fixed point, however, has far less noise than any training
    input. For Gaussian data, the eigenvalues are equal at the fixed point and at noised images. The noise is the same
    at all times.
    """
    denoiser = denoiser.astype(x0.dtype)
    schedule = denoiser.schedule
    noise_rng, start_rng = jax.random.split(rng)
    noise = jax.random.normal(noise_rng, x0.shape, x0.dtype)

    def one_time(starts, t):
        x_t = schedule.diffuse(x0, t, noise)
        eps = _eps_at(denoiser, 0, t)
        growth, starts, _ = _leading_growth(eps, schedule, t, y=x_t, start=starts, count=num_eigenvalues)
        return starts, growth

    starts = jax.random.normal(start_rng, (len(x0), x0[0].size), x0.dtype)
    _, growth = jax.lax.scan(one_time, starts, jnp.asarray(times, x0.dtype))
    return growth


def critical_times(
    times: Real[np.ndarray, "times"], growth: Float[Array | np.ndarray, "times eigenvalues"]
) -> Float[np.ndarray, "eigenvalues"]:
    """Returns, for each column of growth, the upper end of the longest interval of times with growth > 0.

    Growth is interpolated by cubic splines, but not across rows with NaN. The result is NaN if growth is nowhere
    positive. It is also NaN if the longest interval ends at the highest time of a spline, because the true upper end is
    then unknown.

    times: descending.
    """
    times = np.asarray(times, np.float64)[::-1]
    growth = np.asarray(growth, np.float64)[::-1]
    known = np.isfinite(growth).all(axis=1)
    pieces = np.split(np.arange(len(times)), np.flatnonzero(np.diff(known)) + 1)
    pieces = [piece for piece in pieces if known[piece[0]] and len(piece) > 1]
    return np.array([_longest_growth([CubicSpline(times[p], column[p]) for p in pieces]) for column in growth.T])


def _longest_growth(pieces: Sequence[CubicSpline]) -> float:
    """Returns the upper end of the longest interval where a spline is positive, or NaN as in `critical_times`."""
    intervals = []
    for growth in pieces:
        ends = np.concatenate([growth.x[:1], growth.roots(extrapolate=False), growth.x[-1:]])
        for low, high in itertools.pairwise(ends):
            if growth((low + high) / 2) > 0:
                intervals.append((high - low, high, high < growth.x[-1]))
    _, start, turns_positive = max(intervals, default=(0, np.nan, False))
    return float(start) if turns_positive else np.nan


def _eps_at(denoiser: Denoiser, offset: ArrayLike, t: Float[Array, ""]) -> OnImages:
    """Returns the network's eps at time t as a function of y = x - offset."""
    return lambda y: denoiser.eps(offset + y, t)


def _iterate(eps: OnImages, schedule: NoiseSchedule, t: Float[Array, ""], y: Images) -> Images:
    """Finds the stable fixed point of the drift near y.

    The iteration is y <- 2 (y - sigma eps) / (1 + ab), where only half of each step is taken.
    """

    def step(_, y):
        return y / 2 + (y - schedule.sigma(t) * eps(y)) / (1 + schedule.alpha_bar(t))

    return jax.lax.fori_loop(0, ITERATIONS, step, y)


class _NewtonState(NamedTuple):
    count: int | Int[Array, ""]
    y: Images  # the point with the smallest residual so far
    residual: Float[Array, ""]
    change: Images  # the full Newton step from y
    length: Float[Array, ""]  # the fraction of the full step that is tried next


def _newton(drift: OnImages, y: Images) -> tuple[Images, Float[Array, ""]]:
    """Searches for a zero of the drift near y with damped Newton steps. Returns (the best point found, its residual).

    A step that increases the residual is rejected, and the next step is a quarter as long. y is a batch of one image.

    Optimistix is not used, for two reasons. Its Newton solver has no line search, so its steps can lead away from the
    fixed point that is followed. And its solvers stop when a step is short, although the residual can still be large.
    """

    def step(state: _NewtonState) -> _NewtonState:
        candidate = state.y + state.length * state.change
        value, jacobian = jax.linearize(drift, candidate)
        residual = jnp.linalg.norm(value) / np.sqrt(y.size)

        def accept():
            operator = lineax.FunctionLinearOperator(jacobian, jax.eval_shape(lambda: y))
            change = lineax.linear_solve(operator, -value, GMRES, throw=False).value
            length = jnp.minimum(2 * state.length, 1)
            return _NewtonState(count=state.count + 1, y=candidate, residual=residual, change=change, length=length)

        def reject():
            return state._replace(count=state.count + 1, length=state.length / 4)

        return jax.lax.cond(residual < state.residual, accept, reject)

    def unfinished(state: _NewtonState) -> Bool[Array, ""]:
        return (state.count < NEWTON_STEPS) & (state.residual > SETTLED / 10)

    start = _NewtonState(
        count=0,
        y=y,
        residual=jnp.asarray(jnp.inf, y.dtype),
        change=jnp.zeros_like(y),
        length=jnp.ones((), y.dtype),
    )
    end = jax.lax.while_loop(unfinished, step, start)
    return end.y, end.residual


def _leading_growth(
    eps: OnImages, schedule: NoiseSchedule, t: Float[Array, ""], y: Images, start: Rows, count: int
) -> tuple[Float[Array, "batch count"], Rows, Float[Array, "batch"]]:
    """Returns (growth, sum of the eigenvectors, asymmetry) of the symmetric part of the drift's Jacobian at each y.

    The true score is a gradient, so its Jacobian is symmetric. An asymmetric part is an error of the network. The
    growth is computed from the eigenvalues of P in the Krylov space of P and `start` (Rayleigh-Ritz). This needs only
    Jacobian-vector products. In a loop on a CPU, vector-Jacobian products would take ten times as long, because XLA's
    transposed convolutions are slow there.
    """
    _, derivative = jax.linearize(eps, y)

    def apply(vectors):
        return vectors - schedule.sigma(t) * derivative(vectors.reshape(y.shape)).reshape(vectors.shape)

    basis, images = _krylov(apply, start, size=min(LANCZOS_BASIS + 5 * count, start.shape[1]))
    matrix = basis @ images.mT
    asymmetry = _frobenius(matrix - matrix.mT) / _frobenius(matrix + matrix.mT)
    values, rotation = jnp.linalg.eigh((matrix + matrix.mT) / 2)
    values = values[:, : -count - 1 : -1]
    rotation = rotation[:, :, : -count - 1 : -1]
    growth = (values - (1 + schedule.alpha_bar(t)) / 2) / schedule.sigma(t) ** 2
    return growth, (rotation.mT @ basis).sum(axis=1), asymmetry


def _frobenius(matrices: Float[Array, "batch size size"]) -> Float[Array, "batch"]:
    """Returns the Frobenius norm of each matrix."""
    return jnp.linalg.norm(matrices, axis=(1, 2))


def _krylov(
    apply: Linear, start: Rows, size: int
) -> tuple[Float[Array, "batch size dim"], Float[Array, "batch size dim"]]:
    """Returns an orthonormal basis of span(start, apply(start), apply(apply(start)), ...), and `apply` of the basis.

    A small random vector is added at each step, so that the basis is complete even if that space has fewer dimensions.
    """
    noise = 1e-5 * jax.random.normal(jax.random.key(0), (size, *start.shape), start.dtype) / np.sqrt(start.shape[1])

    def step(carry, i):
        basis, vectors = carry
        vectors = _unit(vectors) + noise[i]
        for _ in range(2):  # the second pass removes rounding errors, which are large if little remains
            vectors -= jnp.einsum("bk,bkd->bd", jnp.einsum("bkd,bd->bk", basis, vectors), basis)
        vectors = _unit(vectors)
        images = apply(vectors)
        return (basis.at[:, i].set(vectors), images), images

    basis = jnp.zeros((len(start), size, start.shape[1]), start.dtype)
    (basis, _), images = jax.lax.scan(step, (basis, start), jnp.arange(size))
    return basis, images.swapaxes(0, 1)


def _unit(vectors: Rows) -> Rows:
    """Scales the vectors to norm 1. A zero vector stays zero."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
