"""Multistep solvers of the probability-flow ODE: one evaluation a step, and a table of weights for the last few.

DPM-Solver++ and UniPC step the predicted x_0 in lambda = log(signal / sigma), iPNDM and DEIS the predicted noise in t.
Each makes its table from the grid, for all steps at once. Orders rise from 1 as history gathers. Where lambda is the
time they also fall to 1 at the end, as the authors advise: the last step ends at lambda = infinity.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import EpsFn, NoiseSchedule, per_image
from sampling.common import (
    ADAMS_BASHFORTH,
    intervals,
    lagrange,
    linear_multistep,
    past,
    predicts_x0,
    transfer,
    weighted_sum,
)

GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(16)  # to rounding for e^h, h up to 20; a whole schedule spans 10


def dpmpp(
    order: int,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    x: jax.Array,
    timesteps: jax.Array,
    keys: jax.Array | None = None,
) -> jax.Array:
    """DPM-Solver++(2M), Lu et al. (2022, arXiv 2211.01095), algorithm 2; order 3 is (3M) as in diffusers.

    A step of length h in lambda is x_s = sigma_s / sigma_t x + signal_s (phi_1 m_0 + first and second differences of
    the predictions m_0, m_1, m_2 of x_0, newest first). (3M) weighs the second difference by phi_3, half of what
    Taylor's series asks, so it too is of order 2, if with a smaller error; with 2 phi_3 it would be of order 3.
    """
    times, _ = intervals(timesteps, x.dtype)
    sigma, h = schedule.sigma(times), jnp.diff(schedule.half_log_snr(times))
    order_now, steps_back = falling_orders(order, len(times)), past(len(h), 3)
    r_0, r_1 = h[steps_back[:, 1]] / h, h[steps_back[:, 2]] / h
    phi_1 = -jnp.expm1(-h)
    phi_2 = 1 - phi_1 / h
    phi_3 = 0.5 - phi_2 / h
    curvature = (r_0 * phi_2 + phi_3) / (r_0 + r_1)
    # the weights of m_0 - m_1 and of m_2 - m_1
    newer = jnp.select([order_now == 2, order_now == 3], [phi_1 / (2 * r_0), (phi_2 + curvature) / r_0])
    older = jnp.where(order_now == 3, curvature / r_1, 0)
    weights = schedule.signal(times[1:])[:, None] * jnp.stack([phi_1 + newer, -newer - older, older], axis=1)
    table = ending_in_x0(sigma[1:] / sigma[:-1], weights[:, :order])
    return linear_multistep(predicts_x0(eps_fn, schedule), x, times, *table)


def unipc(
    order: int,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    x: jax.Array,
    timesteps: jax.Array,
    keys: jax.Array | None = None,
) -> jax.Array:
    """UniPC in its data-prediction form with B_2(h), Zhao et al. (2023, arXiv 2302.04867).

    The predictor, UniP, integrates the polynomial through the last predictions of x_0; once the network has been seen
    at the predicted point, the corrector, UniC, takes the same step again with that prediction among them, at no
    further evaluation. Solving the paper's linear system for its weights is to integrate the Lagrange basis against
    signal_s e^(lambda - lambda_s). Only where two predictions are known do the authors put 1/2 for the solution;
    that is to take the line through them at the middle of the step.
    """
    times, _ = intervals(timesteps, x.dtype)
    sigma, lambdas = schedule.sigma(times), schedule.half_log_snr(times)
    h = jnp.diff(lambdas)[:, None]
    places, masses = (GAUSS_LEGENDRE[0] + 1) / 2, GAUSS_LEGENDRE[1] / 2
    masses = schedule.signal(times[1:])[:, None] * h * masses * jnp.exp(h * (places - 1))

    def adams(newest):
        """The weights of the predictions at the ends of the last steps: newest = 1 includes the end of this one."""
        known = falling_orders(order, len(times)) + newest
        points = lambdas[:-1, None] + h * np.where(known[:, None] == 2, 0.5, places)
        basis = lagrange(lambdas[past(len(h), order + 1, newest)], known, points)
        return (basis * masses[:, None]).sum(axis=-1)

    ratio = sigma[1:] / sigma[:-1]
    predictor = ending_in_x0(ratio, adams(newest=0))
    # row i takes step i - 1 again; nothing comes before the first
    corrector = jnp.append(1, ratio), jnp.concatenate([jnp.zeros((1, order + 1)), adams(newest=1)])
    predict_x0 = predicts_x0(eps_fn, schedule)

    def step(carry, row):
        x, predicted, history = carry
        t, (correct_x, correct_history), (predict_x, predict_history) = row
        history = jnp.concatenate([predict_x0(predicted, t)[None], history[:-1]])
        x = per_image(correct_x, x) * x + weighted_sum(correct_history, history)
        predicted = per_image(predict_x, x) * x + weighted_sum(predict_history, history)
        return (x, predicted, history), None

    history = jnp.zeros((order + 1, *x.shape), x.dtype)
    (_, x0, _), _ = jax.lax.scan(step, (x, x, history), (times, corrector, predictor))
    return x0


def ipndm(
    eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    """iPNDM, Zhang and Chen (2022, arXiv 2204.13902): PNDM that opens with lower orders in place of Runge-Kutta."""
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, eps_weights = transfer(schedule, times, next_times)
    order_now = rising_orders(4, len(times))
    return linear_multistep(eps_fn, x, times, x_weights, eps_weights[:, None] * ADAMS_BASHFORTH[order_now - 1])


def deis_3(
    eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    """tAB3-DEIS, Zhang and Chen (2022, arXiv 2204.13902).

    x_s / signal_s = x_t / signal_t + the integral from t to s of eps d(sigma / signal), with eps the cubic in t through
    the last four predictions. The integral is summed over the schedule's own steps of 1.
    """
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, _ = transfer(schedule, times, next_times)
    ends = jnp.arange(-1, schedule.num_timesteps)
    middles, masses = ends[1:] - 0.5, jnp.diff(jnp.exp(-schedule.half_log_snr(ends)))
    covered = (next_times[:, None] < middles) & (middles < times[:, None])
    basis = lagrange(times[past(len(times), 4)], rising_orders(4, len(times)), middles[None])
    integrals = -(basis * (covered * masses)[:, None]).sum(axis=-1)
    return linear_multistep(eps_fn, x, times, x_weights, schedule.signal(next_times)[:, None] * integrals)


def rising_orders(highest: int, n_steps: int) -> np.ndarray:
    """[n]: 1, 2, .. highest, highest, ..: no step has more predictions than have been made."""
    return np.minimum(highest, np.arange(n_steps) + 1)


def falling_orders(highest: int, n_steps: int) -> np.ndarray:
    """[n-1]: 1, 2, .. highest, .. 3, 2, of the steps before the last, whose order is 1."""
    return np.minimum(rising_orders(highest, n_steps), rising_orders(highest, n_steps)[::-1])[:-1]


def ending_in_x0(x_weights: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A table of all steps but the last [n-1, k], and the step to clean data: the newest prediction of x_0 itself."""
    return jnp.append(x_weights, 0), jnp.concatenate([weights, jnp.eye(1, weights.shape[1])])


dpmpp_2m = functools.partial(dpmpp, 2)
dpmpp_3m = functools.partial(dpmpp, 3)
unipc_2 = functools.partial(unipc, 2)
unipc_3 = functools.partial(unipc, 3)
