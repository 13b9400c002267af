"""A time grid from the network's own trajectory: GITS, Chen et al. (2024, arXiv 2405.11326).

With y = x / signal and v = sigma / signal the probability-flow ODE reads dy = eps dv, and DDIM's step follows its
tangent. How far a step leaves the curve is known for every pair of times once a fine trajectory has been walked, so the
n steps whose errors have the least sum come from dynamic programming, at no further evaluation. GITS adds up distances
in y. But early errors are largely undone by later steps, in all directions but those in which data vary much; so here
each error is carried to clean data by the flow of the data's Gaussian, and squares are added, as for errors that have
nothing to do with each other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from core.diffusion import EpsFn, NoiseSchedule, per_image
from sampling.common import intervals
from sampling.late_start import DataGaussian

FINE_STEPS = 30  # of the trajectory; a grid's times are among its own


def fine_times(num_timesteps: int) -> np.ndarray:
    """int32 [FINE_STEPS], from a schedule's last time to 0 in equal steps of sqrt(t), denser near the data."""
    roots = np.linspace(np.sqrt(num_timesteps - 1), 0, min(FINE_STEPS, num_timesteps))
    times = np.rint(roots**2).astype(np.int32)
    return np.maximum(times, np.arange(len(times))[::-1])  # where squares are crowded, every integer


@functools.partial(jax.jit, static_argnums=5)
def walk(
    eps_fn: EpsFn, schedule: NoiseSchedule, gaussian: DataGaussian, x: jax.Array, times: jax.Array, num_measured: int
) -> tuple[jax.Array, jax.Array]:
    """Walks from x [B,H,W,C] at times[0] through times [F] to clean data: (x0 [B,H,W,C], errors [F, F+1]).

    The steps are Adams and Bashforth's of order 2 in v, the first of order 1. errors[i, j] says how
    far a step of DDIM from the i-th time ends from x at the j-th (the last: clean data): the squared distance once the
    flow of `gaussian` has carried both to clean data, the mean of the first num_measured images; infinite for j <= i. F
    evaluations an image. eps_fn is a pytree (see `models.make_eps_fn`).
    """
    starts, ends = intervals(times, x.dtype)
    places = schedule.sigma(starts) / schedule.signal(starts)
    steps = schedule.sigma(ends) / schedule.signal(ends) - places
    lean = jnp.append(0, steps[1:] / (2 * steps[:-1]))  # what the slope before counts for; the first has none

    def step(carry, row):
        y, before = carry
        t, length, lean = row
        slope = eps_fn(per_image(schedule.signal(t), y) * y, jnp.full(len(y), t, y.dtype))
        ahead = slope + per_image(lean, y) * (slope - before)
        return (y + per_image(length, y) * ahead, slope), (y[:num_measured], slope[:num_measured])

    y = x / per_image(schedule.signal(starts[0]), x)
    (x0, _), (path, slopes) = jax.lax.scan(step, (y, jnp.zeros_like(y)), (starts, steps, lean))
    path, places = jnp.concatenate([path, x0[None, :num_measured]]), jnp.append(places, 0)
    signals, alpha_bars = (jnp.append(function(starts), 1) for function in (schedule.signal, schedule.alpha_bar))

    def errors_from(i):
        landed = path[i] + per_image(places - places[i], path) * slopes[i]
        missed = (per_image(signals, path) * (landed - path)).reshape(-1, *x.shape[1:])
        carried = gaussian.carried(missed, jnp.repeat(alpha_bars, num_measured))
        squares = (carried**2).reshape(len(path), num_measured, -1).sum(axis=2).mean(axis=1)
        return jnp.where(jnp.arange(len(path)) > i, squares, jnp.inf)

    return x0, jax.lax.map(errors_from, jnp.arange(len(starts)))


def least_start(times: np.ndarray, n_steps: int) -> int:
    """The latest start from which n_steps of `times` are left."""
    return int(times[len(times) - n_steps])


def cheapest_grid(errors: np.ndarray, times: np.ndarray, n_steps: int, t_start: int) -> np.ndarray:
    """int32 [n_steps], descending from t_start: those of `times` whose steps, down to clean data, have least error.

    t_start takes the place of the nearest of them. errors [F, F+1] and times [F] as `walk` has them; t_start must be
    least_start(times, n_steps) or more.
    """
    count = len(times)
    costs, following = [errors[:, count]], []  # with 1, 2, .. steps left, of each of `times`
    for _ in range(n_steps - 1):
        ways = errors[:, :count] + costs[-1]
        costs.append(ways.min(axis=1))
        following.append(ways.argmin(axis=1))
    chosen = [min(int(np.abs(times - t_start).argmin()), count - n_steps)]
    for best in reversed(following):
        chosen.append(int(best[chosen[-1]]))
    return np.array([t_start, *times[chosen[1:]]], np.int32)
