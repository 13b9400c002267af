"""What the samplers share: their signature, a grid's intervals, the pieces of a solver, and noise owned by an image."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from core.diffusion import EpsFn, NoiseSchedule, per_image

History = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""What was predicted on the way to the start: a scalar alpha_bar to x_0 and eps there, each [B,H,W,C]."""


ADAMS_BASHFORTH = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24
"""Row k - 1: the weights of order k for equal steps, newest prediction first."""


def intervals(timesteps: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The ends of a grid's steps, ([n], [n]): from t to the next t, from the last to -1."""
    times = jnp.asarray(timesteps, dtype)
    return times, jnp.append(times[1:], jnp.asarray(-1, dtype))


def transfer(schedule: NoiseSchedule, t: ArrayLike, s: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The weights (a, b) of x_s = a x_t + b eps, the step from t to s that is exact while eps does not change.

    It is DDIM's step, PNDM's transfer part and DPM-Solver-1: a = signal_s / signal_t, b = sigma_s - a sigma_t. With
    expm1 of the step in lambda, b keeps its digits for near t and s, and is finite for s = -1.
    """
    a = schedule.signal(s) / schedule.signal(t)
    return a, a * schedule.sigma(t) * jnp.expm1(schedule.half_log_snr(t) - schedule.half_log_snr(s))


def looking_back(points: jax.Array, n_steps: int, length: int, newest: int = 0) -> jax.Array:
    """[n_steps, length]: the points of a grid that step i looks back on, newest first.

    Before its start the grid goes on with steps as long as its first.
    """
    index = np.arange(n_steps)[:, None] + newest - np.arange(length)
    return points[np.maximum(index, 0)] + np.minimum(index, 0) * jnp.diff(points[:2]).sum()


def lagrange(nodes: jax.Array, counts: np.ndarray, points: jax.Array) -> jax.Array:
    """The Lagrange basis on the first counts[i] of nodes[i], [n, k], at points [n, q] or [1, q] -> [n, k, q].

    Nodes beyond the count have basis function zero, and may coincide.
    """
    used = np.arange(nodes.shape[1]) < counts[:, None]
    pairs = used[:, :, None] & used[:, None, :] & ~np.eye(nodes.shape[1], dtype=bool)
    gaps = jnp.where(pairs, nodes[:, :, None] - nodes[:, None, :], 1)
    factors = (points[:, None, None, :] - nodes[:, None, :, None]) / gaps[..., None]
    return jnp.where(pairs[..., None], factors, 1).prod(axis=2) * used[..., None]


def weighted_sum(weights: jax.Array, images: jax.Array) -> jax.Array:
    """Sum over the first axis of images [k, B, ...], elementwise: no matrix unit that would round."""
    return (per_image(weights, images) * images).sum(axis=0)


def linear_multistep(
    predict: EpsFn,
    x: jax.Array,
    times: jax.Array,
    x_weights: jax.Array,
    weights: jax.Array,
    known: Sequence[jax.Array] = (),
) -> jax.Array:
    """Step i: x <- x_weights[i] x + sum_j weights[i, j] p_{i-j}, where p_i = predict(x, times[i]).

    times, x_weights: [n]. weights: [n, k], zero where j > i + len(known). known: the predictions made before the first
    step, newest first.
    """

    def step(carry, row):
        x, past = carry
        t, x_weight, weights = row
        past = jnp.concatenate([predict(x, t)[None], past[:-1]])
        return (per_image(x_weight, x) * x + weighted_sum(weights, past), past), None

    (x, _), _ = jax.lax.scan(step, (x, filled(known, weights.shape[1], x)), (times, x_weights, weights))
    return x


def filled(known: Sequence[jax.Array], length: int, x: jax.Array) -> jax.Array:
    """[length, *x.shape]: the predictions known, and zeros behind them."""
    return jnp.stack([*known, *[jnp.zeros_like(x)] * (length - len(known))])


def predicts_x0(eps_fn: EpsFn, schedule: NoiseSchedule) -> EpsFn:
    """eps_fn as a function that predicts x_0 in place of the noise."""
    return lambda x, t: schedule.predict_x0(x, t, eps_fn(x, t))


def clip_x0(eps_fn: EpsFn, schedule: NoiseSchedule, low: float = -1.0, high: float = 1.0) -> EpsFn:
    """eps_fn, changed where the x_0 that it predicts leaves [low, high]: it then predicts the nearest bound."""

    def clipped(x, t):
        eps = eps_fn(x, t)
        t = jnp.maximum(t, 0)  # at -1, where PNDM's opening may ask, x_0 is x whatever eps is
        x0 = schedule.predict_x0(x, t, eps)
        return eps + per_image(schedule.signal(t) / schedule.sigma(t), x) * (x0 - jnp.clip(x0, low, high))

    return clipped
