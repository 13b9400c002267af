"""Building blocks of the samplers: network evaluations, time intervals, the step for constant eps, multistep tables."""

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
"""Maps a scalar alpha_bar to the predictions (x_0, eps) of a known distribution, such as the data's Gaussian. It is
called at t_start and at higher noise levels. Solvers use only differences from the prediction at t_start (see
`joined`)."""


class Evaluation(NamedTuple):
    """One network evaluation; the argument of a callback."""

    t: Float[Array, ""]
    x: Images
    eps: Images
    x0: Images


Records = Any
"""The results of a callback, stacked over all network evaluations along a new first axis; None without a callback."""

Callback = Callable[[Evaluation], Any]
"""Called at every network evaluation, in order. It is traced, so it must be pure. It returns arrays or None."""

ADAMS_BASHFORTH = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24
"""Row k - 1 has the weights of the method of order k for equal steps, for the newest prediction first."""


def evaluate(
    denoiser: Denoiser, callback: Callback | None, x: Images, t: Float[Array, ""]
) -> tuple[tuple[Images, Images], Any]:
    """Returns the predictions (x_0, eps) at x and t, and the result of the callback."""
    x0, eps = denoiser.predictions(x, t)
    return (x0, eps), None if callback is None else callback(Evaluation(t, x, eps, x0))


def evaluate_eps(denoiser: Denoiser, callback: Callback | None, x: Images, t: Float[Array, ""]) -> tuple[Images, Any]:
    """Returns the predicted noise and the result of the callback."""
    (_, eps), record = evaluate(denoiser, callback, x, t)
    return eps, record


def evaluate_x0(denoiser: Denoiser, callback: Callback | None, x: Images, t: Float[Array, ""]) -> tuple[Images, Any]:
    """Returns the predicted x_0 and the result of the callback."""
    (x0, _), record = evaluate(denoiser, callback, x, t)
    return x0, record


def intervals(
    timesteps: Real[Array | np.ndarray, "steps"], dtype: jnp.dtype
) -> tuple[Float[Array, "steps"], Float[Array, "steps"]]:
    """Returns the first time and the last time of every step of a grid. The last step ends at t = -1."""
    times = jnp.asarray(timesteps, dtype)
    return times, jnp.append(times[1:], jnp.asarray(-1, dtype))


def transfer(schedule: NoiseSchedule, t: ArrayLike, s: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Returns the weights (a, b) of x_s = a x_t + b eps, the step from t to s that is exact for constant eps.

    This is the step of DDIM, the transfer part of PNDM, and DPM-Solver-1: a = signal_s / signal_t and
    b = sigma_s - a sigma_t. b is computed with expm1 of the step in lambda, so it is accurate if t and s are close, and
    finite for s = -1.
    """
    a = schedule.signal(s) / schedule.signal(t)
    return a, a * schedule.sigma(t) * jnp.expm1(schedule.half_log_snr(t) - schedule.half_log_snr(s))


def looking_back(
    points: Float[Array, "points"], n_steps: int, length: int, newest: int = 0
) -> Float[Array, "{n_steps} {length}"]:
    """Returns, in row i, `length` grid points that step i of a multistep solver uses, newest first.

    The row begins with point i + newest. Above t_start, the grid is continued with steps as long as its first step.
    """
    index = np.arange(n_steps)[:, None] + newest - np.arange(length)
    return points[np.maximum(index, 0)] + np.minimum(index, 0) * jnp.diff(points[:2]).sum()


def lagrange(
    nodes: Float[Array | np.ndarray, "n k"], counts: Int[np.ndarray, "n"], points: Float[Array | np.ndarray, "#n q"]
) -> Float[Array, "n k q"]:
    """Evaluates the Lagrange basis polynomials of the first counts[i] nodes of nodes[i] at points[i].

    The result is zero for the other nodes, which may coincide.
    """
    used = np.arange(nodes.shape[1]) < counts[:, None]
    pairs = used[:, :, None] & used[:, None, :] & ~np.eye(nodes.shape[1], dtype=bool)
    gaps = jnp.where(pairs, nodes[:, :, None] - nodes[:, None, :], 1)
    factors = (points[:, None, None, :] - nodes[:, None, :, None]) / gaps[..., None]
    return jnp.where(pairs[..., None], factors, 1).prod(axis=2) * used[..., None]


def weighted_sum(weights: Float[Array, "length"], images: Float[Array, "length *image"]) -> Float[Array, "*image"]:
    """Returns the weighted sum over the first axis.

    It is computed elementwise, because a matrix unit would round to bfloat16.
    """
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
    """Runs a linear multistep solver: step i is x <- x_weights[i] x + sum_j weights[i, j] p_{i-j}.

    evaluate: called as evaluate(x, times[i]); returns the prediction p_i and a record.
    weights: weights[i, j] must be zero for j > i + len(known).
    known: predictions from before the first step, newest first.
    relative: whether `known` holds differences, to which the prediction of the first step is added (see `joined`).
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
    """Prepends the newest prediction to the past predictions and drops the oldest.

    changes: whether `past` holds differences. At the first step of a solver with a history, `past` holds the history's
      predictions at times above t_start, minus the history's prediction at t_start. The network's prediction at t_start
      is added to these differences. If `past` held the history's predictions themselves, the solver would take the jump
      between network and history at t_start for a derivative, and would have order 1.
    """
    past = jnp.where(changes, past + prediction, past)
    return jnp.concatenate([prediction[None], past[:-1]])


def filled(
    known: Sequence[Images] | Float[Array, "known batch height width channels"], length: int, x: Images
) -> Float[Array, "{length} *image"]:
    """Stacks the known images, newest first, and pads with zeros to `length`."""
    return jnp.stack([*known, *[jnp.zeros_like(x)] * (length - len(known))])


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Returns a denoiser whose predicted x_0 is clipped to [low, high]. eps is changed to match."""
    schedule = denoiser.schedule

    def clipped(x, t):
        eps = denoiser.eps(x, t)
        t = jnp.maximum(t, 0)  # PNDM's Runge-Kutta steps may evaluate at t = -1, where x_0 is x for any eps
        x0 = schedule.predict_x0(x, t, eps)
        return eps + per_image(schedule.signal(t) / schedule.sigma(t), x) * (x0 - jnp.clip(x0, low, high))

    return Denoiser(clipped, schedule)
