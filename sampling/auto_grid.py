"""The automatic time grid, computed from trajectories of the network: GITS, Chen et al. (2024, arXiv 2405.11326).

With y = x / signal and v = sigma / signal, the probability-flow ODE is dy = eps dv, and a step of DDIM follows the
tangent of its solution. On a trajectory with many short steps, the error of a DDIM step between any two of its times is
known. Dynamic programming then finds the n steps with the smallest total error, without further network evaluations.

GITS adds distances in y. Here, each error is first propagated to clean data by the probability-flow ODE of the data's
Gaussian, because later steps undo most early errors, except in directions of large variance. Then the squares of the
propagated errors are added. Squares favour grids whose steps have errors of similar size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from core.diffusion import Denoiser, per_image
from core.shapes import Images
from sampling.common import intervals
from sampling.late_start import DataGaussian

FINE_STEPS = 30  # steps of the fine trajectory; the times of a grid are chosen among its times


def fine_times(num_timesteps: int) -> Int[np.ndarray, "fine"]:
    """Returns FINE_STEPS times from T - 1 down to 0, equally spaced in sqrt(t), so that they are denser near t = 0."""
    roots = np.linspace(np.sqrt(num_timesteps - 1), 0, min(FINE_STEPS, num_timesteps))
    times = np.rint(roots**2).astype(np.int32)
    return np.maximum(times, np.arange(len(times))[::-1])  # where rounding repeats integers: .., 3, 2, 1, 0


@functools.partial(jax.jit, static_argnames="num_measured")
def walk(
    denoiser: Denoiser,
    gaussian: DataGaussian,
    x: Images,
    times: Int[Array | np.ndarray, "fine"],
    *,
    num_measured: int,
) -> tuple[Images, Float[Array, "fine fine+1"]]:
    """Integrates x from times[0] through all `times` to clean data, and returns (x_0, errors).

    The method is Adams-Bashforth of order 2 in v, with a first step of order 1. It evaluates the network once per time.
    errors[i, j] belongs to the DDIM step from the i-th time to the j-th time, or to clean data for the last j. The
    error of this step is propagated to clean data by the probability flow of `gaussian`, squared, and averaged over the
    first num_measured images. It is infinite for j <= i.
    """
    schedule = denoiser.schedule
    starts, ends = intervals(times, x.dtype)
    places = schedule.sigma(starts) / schedule.signal(starts)
    steps = schedule.sigma(ends) / schedule.signal(ends) - places
    correction = jnp.append(0, steps[1:] / (2 * steps[:-1]))  # weights of the change of slope; 0 for the first step

    def step(carry, row):
        y, previous_slope = carry
        t, length, correction = row
        slope = denoiser.eps(per_image(schedule.signal(t), y) * y, t)
        extrapolated = slope + per_image(correction, y) * (slope - previous_slope)
        return (y + per_image(length, y) * extrapolated, slope), (y[:num_measured], slope[:num_measured])

    y = x / per_image(schedule.signal(starts[0]), x)
    (x0, _), (path, slopes) = jax.lax.scan(step, (y, jnp.zeros_like(y)), (starts, steps, correction))
    path = jnp.concatenate([path, x0[None, :num_measured]])
    places = jnp.append(places, 0)
    signals = jnp.append(schedule.signal(starts), 1)
    alpha_bars = jnp.append(schedule.alpha_bar(starts), 1)

    def errors_from(i):
        landed = path[i] + per_image(places - places[i], path) * slopes[i]
        missed = (per_image(signals, path) * (landed - path)).reshape(-1, *x.shape[1:])
        carried = gaussian.carried(missed, jnp.repeat(alpha_bars, num_measured))
        squares = (carried**2).reshape(len(path), num_measured, -1).sum(axis=2).mean(axis=1)
        return jnp.where(jnp.arange(len(path)) > i, squares, jnp.inf)

    return x0, jax.lax.map(errors_from, jnp.arange(len(starts)))


def least_start(times: Int[np.ndarray, "fine"], n_steps: int) -> int:
    """Returns the smallest start for which at least n_steps of `times` are not above the start."""
    return int(times[len(times) - n_steps])


def cheapest_grid(
    errors: Float[np.ndarray, "fine fine+1"], times: Int[np.ndarray, "fine"], n_steps: int, t_start: int
) -> Int[np.ndarray, "{n_steps}"]:
    """Returns n_steps times, descending from t_start, whose steps to clean data have the smallest total error.

    errors: the errors that `walk` returns.
    t_start: at least least_start(times, n_steps). The first step is given the error of the step that begins at the
      nearest of `times`.
    """
    count = len(times)
    costs = [errors[:, count]]  # costs[k][i]: the smallest total error of k + 1 steps from the i-th time to clean data
    following = []  # following[k][i]: the index of the time after the i-th in the best k + 2 steps
    for _ in range(n_steps - 1):
        totals = errors[:, :count] + costs[-1]
        costs.append(totals.min(axis=1))
        following.append(totals.argmin(axis=1))
    chosen = [min(int(np.abs(times - t_start).argmin()), count - n_steps)]
    for best in reversed(following):
        chosen.append(int(best[chosen[-1]]))
    return np.array([t_start, *times[chosen[1:]]], np.int32)
