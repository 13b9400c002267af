"""Building blocks of the samplers: network evaluations, time intervals, the exact transfer step, multistep tables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.shapes import Images

History = Callable[[jax.Array], tuple[Images, Images]]
"""Predictions at and above the start of sampling, for example the data's Gaussian's: maps a scalar alpha_bar to the x_0
and eps predicted there. Solvers use only their change from the start, see `joined`."""


class Evaluation(NamedTuple):
    """One network evaluation, as a callback receives it."""

    t: Float[Array, ""]
    x: Images
    eps: Images
    x0: Images


Records = Any
"""What a callback returned, stacked over all network evaluations along a new first axis; None without a callback."""

Callback = Callable[[Evaluation], Any]
"""Called at every network evaluation, in order. It is traced, so it must be pure; it returns arrays, or None."""

ADAMS_BASHFORTH = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24
"""Row k - 1: the weights of order k for equal steps, newest prediction first."""


def evaluate(
    denoiser: Denoiser, callback: Callback | None, x: Images, t: Float[Array, ""]
) -> tuple[tuple[Images, Images], Any]:
    """The x_0 and the noise predicted at x and t, and what the callback returns for this evaluation."""
    x0, eps = denoiser.predictions(x, t)
    return (x0, eps), None if callback is None else callback(Evaluation(t, x, eps, x0))


def evaluate_eps(denoiser: Denoiser, callback: Callback | None, x: Images, t: Float[Array, ""]) -> tuple[Images, Any]:
    """The predicted noise and what the callback returns."""
    (_, eps), record = evaluate(denoiser, callback, x, t)
    return eps, record


def evaluate_x0(denoiser: Denoiser, callback: Callback | None, x: Images, t: Float[Array, ""]) -> tuple[Images, Any]:
    """The same with the predicted x_0 in place of the noise."""
    (x0, _), record = evaluate(denoiser, callback, x, t)
    return x0, record


def intervals(
    timesteps: Real[Array | np.ndarray, "steps"], dtype: jnp.dtype
) -> tuple[Float[Array, "steps"], Float[Array, "steps"]]:
    """The first and the last time of every step of a grid; the last step ends at t = -1."""
    times = jnp.asarray(timesteps, dtype)
    return times, jnp.append(times[1:], jnp.asarray(-1, dtype))


def transfer(schedule: NoiseSchedule, t: ArrayLike, s: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The weights (a, b) of x_s = a x_t + b eps, the step from t to s that is exact for constant eps.

    This is DDIM's step, PNDM's transfer part and DPM-Solver-1: a = signal_s / signal_t, b = sigma_s - a sigma_t. With
    expm1 of the step in lambda, b loses no digits where t and s are close, and is finite for s = -1.
    """
    a = schedule.signal(s) / schedule.signal(t)
    return a, a * schedule.sigma(t) * jnp.expm1(schedule.half_log_snr(t) - schedule.half_log_snr(s))


def looking_back(
    points: Float[Array, "points"], n_steps: int, length: int, newest: int = 0
) -> Float[Array, "{n_steps} {length}"]:
    """Row i: the grid points that step i of a multistep solver uses, newest first.

    Above the start the grid is continued with steps as long as its first.
    """
    index = np.arange(n_steps)[:, None] + newest - np.arange(length)
    return points[np.maximum(index, 0)] + np.minimum(index, 0) * jnp.diff(points[:2]).sum()


def lagrange(
    nodes: Float[Array | np.ndarray, "n k"], counts: Int[np.ndarray, "n"], points: Float[Array | np.ndarray, "#n q"]
) -> Float[Array, "n k q"]:
    """The Lagrange basis polynomials on the first counts[i] of nodes[i], at points[i].

    Basis functions of nodes beyond the count are zero; those nodes may coincide.
    """
    used = np.arange(nodes.shape[1]) < counts[:, None]
    pairs = used[:, :, None] & used[:, None, :] & ~np.eye(nodes.shape[1], dtype=bool)
    gaps = jnp.where(pairs, nodes[:, :, None] - nodes[:, None, :], 1)
    factors = (points[:, None, None, :] - nodes[:, None, :, None]) / gaps[..., None]
    return jnp.where(pairs[..., None], factors, 1).prod(axis=2) * used[..., None]


def weighted_sum(weights: Float[Array, "length"], images: Float[Array, "length *image"]) -> Float[Array, "*image"]:
    """The weighted sum over the first axis, elementwise: a matrix unit would round to bfloat16."""
    return (per_image(weights, images) * images).sum(axis=0)


def linear_multistep(
    evaluate: Callable[[Images, Float[Array, ""]], tuple[Images, Any]],
    x: Images,
    *,
    times: Float[Array, "steps"],
    x_weights: Float[Array, "steps"],
    weights: Float[Array, "steps length"],
    known: Sequence[Images] | Float[Array, "known batch height width channels"] = (),
    relative: bool = False,
) -> tuple[Images, Records]:
    """A linear multistep solver: step i is x <- x_weights[i] x + sum_j weights[i, j] p_{i-j}.

    p_i is the prediction of evaluate(x, times[i]), which also returns a record. weights[i, j] must be zero where
    j > i + len(known). known: predictions from before the first step, newest first. relative: whether they are changes
    relative to the prediction of the first step (see `joined`).
    """

    def step(carry, row):
        x, past = carry
        t, x_weight, weights = row
        prediction, record = evaluate(x, t)
        past = joined(prediction, past, changes=relative & (t == times[0]))
        return (per_image(x_weight, x) * x + weighted_sum(weights, past), past), record

    past = filled(known, weights.shape[1], x)
    (x, _), records = jax.lax.scan(step, (x, past), (times, x_weights, weights))
    return x, records


def joined(
    prediction: Images, past: Float[Array, "length batch height width channels"], changes: Bool[Array, ""] | bool
) -> Float[Array, "length batch height width channels"]:
    """The newest prediction, followed by the past ones; the oldest is dropped.

    At the first step of a solver with a history, `past` holds changes: the history's predictions above the start, minus
    the history's prediction at the start. The network's prediction at the start is added to them. Otherwise the jump
    between network and history at the start would be taken for a derivative, and the solver would have order 1.
    """
    past = jnp.where(changes, past + prediction, past)
    return jnp.concatenate([prediction[None], past[:-1]])


def filled(
    known: Sequence[Images] | Float[Array, "known batch height width channels"], length: int, x: Images
) -> Float[Array, "{length} *image"]:
    """The known images, newest first, padded with zeros to `length`."""
    return jnp.stack([*known, *[jnp.zeros_like(x)] * (length - len(known))])


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """The denoiser with its predicted x_0 clipped to [low, high]; eps is changed to match."""
    schedule = denoiser.schedule

    def clipped(x, t):
        eps = denoiser.eps(x, t)
        t = jnp.maximum(t, 0)  # PNDM's opening may evaluate at t = -1, where x_0 is x for any eps
        x0 = schedule.predict_x0(x, t, eps)
        return eps + per_image(schedule.signal(t) / schedule.sigma(t), x) * (x0 - jnp.clip(x0, low, high))

    return Denoiser(clipped, schedule)
