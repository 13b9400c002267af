"""Multistep solvers of the probability-flow ODE: one evaluation a step, and a table of weights for the last few.

DPM-Solver++ and UniPC step the predicted x_0 in lambda = log(signal / sigma), iPNDM and DEIS the predicted noise in t.
Each makes its table from the grid, for all steps at once. Orders rise from 1 as predictions gather. Where lambda is the
time they also fall to 1 at the end, as the authors advise: the last step ends at lambda = infinity.

A late start need not open at order 1. One step above it the marginal is Gaussian, and what the network would have said
there is known in closed form (`DataGaussian.predictions`): with that for a history the first step is of order 2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from core.diffusion import EpsFn, NoiseSchedule, per_image
from sampling.common import (
    ADAMS_BASHFORTH,
    History,
    filled,
    intervals,
    lagrange,
    linear_multistep,
    looking_back,
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
    history: History | None = None,
) -> jax.Array:
    """DPM-Solver++(2M), Lu et al. (2022, arXiv 2211.01095), algorithm 2; order 3 is (3M) as in diffusers.

    A step of length h in lambda is x_s = sigma_s / sigma_t x + signal_s (phi_1 m_0 + first and second differences of
    the predictions m_0, m_1, m_2 of x_0, newest first). (3M) weighs the second difference by phi_3, half of what
    Taylor's series asks, so it too is of order 2, if with a smaller error; with 2 phi_3 it would be of order 3.
    """
    times, _ = intervals(timesteps, x.dtype)
    sigma, lambdas = schedule.sigma(times), schedule.half_log_snr(times)
    h, known = jnp.diff(lambdas), known_x0(history, lambdas)
    order_now = falling_orders(order, len(times), len(known))
    r_0, r_1 = -jnp.diff(looking_back(lambdas, len(h), 3)).T / h
    phi_1 = -jnp.expm1(-h)
    phi_2 = 1 - phi_1 / h
    phi_3 = 0.5 - phi_2 / h
    curvature = (r_0 * phi_2 + phi_3) / (r_0 + r_1)
    # the weights of m_0 - m_1 and of m_2 - m_1
    newer = jnp.select([order_now == 2, order_now == 3], [phi_1 / (2 * r_0), (phi_2 + curvature) / r_0])
    older = jnp.where(order_now == 3, curvature / r_1, 0)
    weights = schedule.signal(times[1:])[:, None] * jnp.stack([phi_1 + newer, -newer - older, older], axis=1)
    table = ending_in_x0(sigma[1:] / sigma[:-1], weights[:, :order])
    return linear_multistep(predicts_x0(eps_fn, schedule), x, times, *table, known)


def unipc(
    order: int,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    x: jax.Array,
    timesteps: jax.Array,
    history: History | None = None,
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
    h, known = jnp.diff(lambdas)[:, None], known_x0(history, lambdas)
    places, masses = (GAUSS_LEGENDRE[0] + 1) / 2, GAUSS_LEGENDRE[1] / 2
    masses = schedule.signal(times[1:])[:, None] * h * masses * jnp.exp(h * (places - 1))

    def adams(newest):
        """The weights of the predictions at the ends of the last steps: newest = 1 includes the end of this one."""
        counts = falling_orders(order, len(times), len(known)) + newest
        points = lambdas[:-1, None] + h * np.where(counts[:, None] == 2, 0.5, places)
        basis = lagrange(looking_back(lambdas, len(h), order + 1, newest), counts, points)
        return (basis * masses[:, None]).sum(axis=-1)

    ratio = sigma[1:] / sigma[:-1]
    predictor = ending_in_x0(ratio, adams(newest=0))
    # row i takes step i - 1 again; nothing comes before the first
    corrector = jnp.append(1, ratio), jnp.concatenate([jnp.zeros((1, order + 1)), adams(newest=1)])
    predict_x0 = predicts_x0(eps_fn, schedule)

    def step(carry, row):
        x, predicted, past = carry
        t, (correct_x, correct_past), (predict_x, predict_past) = row
        past = jnp.concatenate([predict_x0(predicted, t)[None], past[:-1]])
        x = per_image(correct_x, x) * x + weighted_sum(correct_past, past)
        predicted = per_image(predict_x, x) * x + weighted_sum(predict_past, past)
        return (x, predicted, past), None

    (_, x0, _), _ = jax.lax.scan(step, (x, x, filled(known, order + 1, x)), (times, corrector, predictor))
    return x0


def ipndm(
    eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array, history: History | None = None
) -> jax.Array:
    """iPNDM, Zhang and Chen (2022, arXiv 2204.13902): PNDM that opens with lower orders in place of Runge-Kutta."""
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, eps_weights = transfer(schedule, times, next_times)
    known = known_eps(history, schedule, times[0], next_times[0])
    weights = eps_weights[:, None] * ADAMS_BASHFORTH[rising_orders(4, len(times), len(known)) - 1]
    return linear_multistep(eps_fn, x, times, x_weights, weights, known)


def deis_3(
    eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array, history: History | None = None
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
    known = known_eps(history, schedule, times[0], next_times[0])
    nodes = looking_back(jnp.append(times, next_times[-1]), len(times), 4)
    basis = lagrange(nodes, rising_orders(4, len(times), len(known)), middles[None])
    integrals = -(basis * (covered * masses)[:, None]).sum(axis=-1)
    weights = schedule.signal(next_times)[:, None] * integrals
    return linear_multistep(eps_fn, x, times, x_weights, weights, known)


def rising_orders(highest: int, n_steps: int, known: int) -> np.ndarray:
    """[n]: 1, 2, .. highest, highest, ..: no step has more predictions than were known or have been made since."""
    return np.minimum(highest, known + 1 + np.arange(n_steps))


def falling_orders(highest: int, n_steps: int, known: int) -> np.ndarray:
    """[n-1]: the same, but .. 3, 2 before the last step, whose order is 1."""
    return np.minimum(rising_orders(highest, n_steps, known), np.arange(n_steps, 0, -1))[:-1]


def known_x0(history: History | None, lambdas: jax.Array) -> list[jax.Array]:
    """The x_0 predicted one step above a start, the step that the grid begins with; empty without a history."""
    [[_, above]] = looking_back(lambdas, 1, 2)
    return [history(jax.nn.sigmoid(2 * above))[0]] if history else []


def known_eps(history: History | None, schedule: NoiseSchedule, t: jax.Array, s: jax.Array) -> list[jax.Array]:
    """The noise predicted one step above t, the step from t to s; above the last time of all it stays the same."""
    above = jnp.minimum(t + (t - s), schedule.num_timesteps - 1)
    return [history(schedule.alpha_bar(above))[1]] if history else []


def ending_in_x0(x_weights: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A table of all steps but the last [n-1, k], and the step to clean data: the newest prediction of x_0 itself."""
    return jnp.append(x_weights, 0), jnp.concatenate([weights, jnp.eye(1, weights.shape[1])])


dpmpp_2m = functools.partial(dpmpp, 2)
dpmpp_3m = functools.partial(dpmpp, 3)
unipc_2 = functools.partial(unipc, 2)
unipc_3 = functools.partial(unipc, 3)
