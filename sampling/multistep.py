"""Multistep solvers of the probability-flow ODE, with one network evaluation a step: DPM-Solver++, UniPC, iPNDM, DEIS.

DPM-Solver++ and UniPC extrapolate the predicted x_0 in lambda = log(signal / sigma). iPNDM and DEIS extrapolate the
predicted noise in t. Each solver first computes its weights for all steps from the grid. The order of the steps rises
from 1 as predictions accumulate. For the solvers in lambda it also falls to 1 at the end, as their authors advise,
because the last step ends at lambda = infinity.

With a late start, the first step can have order 2. The predictions of the data's Gaussian or mixture at times
t >= t_start are known in closed form (`DataMixture.predictions`). These predictions are called the history. At a time
t > t_start, the solver uses network(t_start) + history(t) - history(t_start) as the prediction (see `common.joined`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from core.diffusion import Denoiser, NoiseSchedule, per_image
from core.shapes import Images, Timesteps
from sampling.common import (
    ADAMS_BASHFORTH,
    Callback,
    History,
    Records,
    evaluate_eps,
    evaluate_x0,
    filled,
    intervals,
    joined,
    lagrange,
    linear_multistep,
    looking_back,
    transfer,
    weighted_sum,
)

# Exact up to rounding for steps up to 20 in lambda. A whole schedule spans about 10.
GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(16)


def dpmpp(
    order: int,
    denoiser: Denoiser,
    x: Images,
    timesteps: Timesteps,
    callback: Callback | None = None,
    history: History | None = None,
) -> tuple[Images, Records]:
    """DPM-Solver++(2M), Lu et al. (2022, arXiv 2211.01095), algorithm 2. With order=3 it is (3M), as in diffusers.

    m_0, m_1, m_2 are the predictions of x_0, newest first. A step of length h in lambda is x_s = sigma_s / sigma_t x +
    signal_s (phi_1 m_0 + multiples of first and second differences of m_0, m_1, m_2). Here phi_1 = 1 - e^-h,
    phi_2 = 1 - phi_1 / h and phi_3 = 1/2 - phi_2 / h. In (3M) the second difference has the factor phi_3, which is half
    of its coefficient 2 phi_3 in the Taylor series. So (3M) converges at order 2, like (2M), with a smaller error. With
    2 phi_3 it would converge at order 3.

    The last two steps have orders 2 and 1, for any number of steps. In other codes, the option lower_order_final lowers
    these orders only if there are few steps: fewer than 10 in the authors' code, fewer than 15 in diffusers'
    DPMSolverMultistepScheduler. With the default final_sigmas_type="zero" of that scheduler, the last step has order 1
    for any number of steps.
    """
    schedule = denoiser.schedule
    times, _ = intervals(timesteps, x.dtype)
    sigma = schedule.sigma(times)
    lambdas = schedule.half_log_snr(times)
    h = jnp.diff(lambdas)
    known = known_x0(history, lambdas)
    order_now = falling_orders(order, len(times), len(known))
    r_0, r_1 = -jnp.diff(looking_back(lambdas, len(h), 3)).T / h
    phi_1 = -jnp.expm1(-h)
    phi_2 = 1 - phi_1 / h
    phi_3 = 0.5 - phi_2 / h
    curvature = (r_0 * phi_2 + phi_3) / (r_0 + r_1)
    # `newer` multiplies m_0 - m_1, `older` multiplies m_2 - m_1.
    newer = jnp.select([order_now == 2, order_now == 3], [phi_1 / (2 * r_0), (phi_2 + curvature) / r_0])
    older = jnp.where(order_now == 3, curvature / r_1, 0)
    weights = schedule.signal(times[1:])[:, None] * jnp.stack([phi_1 + newer, -newer - older, older], axis=1)
    x_weights, weights = ending_in_x0(sigma[1:] / sigma[:-1], weights[:, :order])
    evaluate = functools.partial(evaluate_x0, denoiser, callback)
    return linear_multistep(evaluate, x, times=times, x_weights=x_weights, weights=weights, known=known, relative=True)


def unipc(
    order: int,
    denoiser: Denoiser,
    x: Images,
    timesteps: Timesteps,
    callback: Callback | None = None,
    history: History | None = None,
) -> tuple[Images, Records]:
    """UniPC in its data-prediction form with B_2(h), Zhao et al. (2023, arXiv 2302.04867).

    The predictor UniP integrates the polynomial through the last predictions of x_0. The network is evaluated at the
    predicted point. The corrector UniC then repeats the step with the new prediction included, without another
    evaluation. The paper's linear system for the weights is equivalent to integrating the Lagrange basis with the
    weight function signal_s e^(lambda - lambda_s). For two predictions the authors use the weight 1/2 instead of the
    solution of this system. This is equivalent to evaluating the line through the two predictions at the middle of the
    step.
    """
    schedule = denoiser.schedule
    times, _ = intervals(timesteps, x.dtype)
    sigma = schedule.sigma(times)
    lambdas = schedule.half_log_snr(times)
    h = jnp.diff(lambdas)[:, None]
    known = known_x0(history, lambdas)
    nodes = (GAUSS_LEGENDRE[0] + 1) / 2
    masses = schedule.signal(times[1:])[:, None] * h * (GAUSS_LEGENDRE[1] / 2) * jnp.exp(h * (nodes - 1))

    def adams(newest):
        """Returns the weights of the predictions. With newest = 1, the one at the end of the step is included."""
        counts = falling_orders(order, len(times), len(known)) + newest
        points = lambdas[:-1, None] + h * np.where(counts[:, None] == 2, 0.5, nodes)
        basis = lagrange(looking_back(lambdas, len(h), length=order + 1, newest=newest), counts, points)
        return (basis * masses[:, None]).sum(axis=-1)

    ratio = sigma[1:] / sigma[:-1]
    predictor = ending_in_x0(ratio, adams(newest=0))
    # Row i of the corrector repeats step i - 1. There is nothing to repeat before the first step.
    corrector = (jnp.append(1, ratio), jnp.concatenate([jnp.zeros((1, order + 1)), adams(newest=1)]))

    def step(carry, row):
        x, predicted, past = carry
        t, (correct_x, correct_past), (predict_x, predict_past) = row
        x0, record = evaluate_x0(denoiser, callback, predicted, t)
        past = joined(x0, past, changes=(history is not None) & (t == times[0]))
        x = per_image(correct_x, x) * x + weighted_sum(correct_past, past)
        predicted = per_image(predict_x, x) * x + weighted_sum(predict_past, past)
        return (x, predicted, past), record

    past = filled(known, order + 1, x)
    (_, x0, _), records = jax.lax.scan(step, (x, x, past), (times, corrector, predictor))
    return x0, records


def ipndm(
    denoiser: Denoiser,
    x: Images,
    timesteps: Timesteps,
    callback: Callback | None = None,
    history: History | None = None,
) -> tuple[Images, Records]:
    """iPNDM, Zhang and Chen (2022, arXiv 2204.13902): PNDM with first steps of lower order instead of Runge-Kutta."""
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, eps_weights = transfer(denoiser.schedule, times, next_times)
    known = known_eps(history, denoiser.schedule, t=times[0], s=next_times[0])
    weights = eps_weights[:, None] * ADAMS_BASHFORTH[rising_orders(4, len(times), len(known)) - 1]
    evaluate = functools.partial(evaluate_eps, denoiser, callback)
    return linear_multistep(evaluate, x, times=times, x_weights=x_weights, weights=weights, known=known, relative=True)


def deis_3(
    denoiser: Denoiser,
    x: Images,
    timesteps: Timesteps,
    callback: Callback | None = None,
    history: History | None = None,
) -> tuple[Images, Records]:
    """tAB3-DEIS, Zhang and Chen (2022, arXiv 2204.13902).

    x_s / signal_s = x_t / signal_t + the integral from t to s of eps d(sigma / signal), where eps is the cubic in t
    through the last four predictions. The integral is computed as a sum over the steps of length 1 in the schedule.
    """
    schedule = denoiser.schedule
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, _ = transfer(schedule, times, next_times)
    ends = jnp.arange(-1, schedule.num_timesteps)
    middles = ends[1:] - 0.5
    masses = jnp.diff(jnp.exp(-schedule.half_log_snr(ends)))
    covered = (next_times[:, None] < middles) & (middles < times[:, None])
    known = known_eps(history, schedule, t=times[0], s=next_times[0])
    nodes = looking_back(jnp.append(times, next_times[-1]), len(times), 4)
    basis = lagrange(nodes, rising_orders(4, len(times), len(known)), middles[None])
    integrals = -(basis * (covered * masses)[:, None]).sum(axis=-1)
    weights = schedule.signal(next_times)[:, None] * integrals
    evaluate = functools.partial(evaluate_eps, denoiser, callback)
    return linear_multistep(evaluate, x, times=times, x_weights=x_weights, weights=weights, known=known, relative=True)


def rising_orders(highest: int, n_steps: int, known: int) -> Int[np.ndarray, "{n_steps}"]:
    """Returns the order of each step: the number of available predictions, at most `highest`.

    known: the number of predictions that are available before the first step.
    """
    return np.minimum(highest, known + 1 + np.arange(n_steps))


def falling_orders(highest: int, n_steps: int, known: int) -> Int[np.ndarray, "{n_steps}-1"]:
    """Returns the order of each step except the last, which has order 1.

    The order first rises as in `rising_orders`. At the end it falls by 1 per step, so that the step before the last one
    has order 2 at most.
    """
    return np.minimum(rising_orders(highest, n_steps, known), np.arange(n_steps, 0, -1))[:-1]


def known_x0(history: History | None, lambdas: Float[Array, "steps"]) -> list[Images]:
    """Returns the history's x_0 one step above t_start, minus the history's x_0 at t_start.

    The step is as long in lambda as the first step of the grid. Without a history, the list is empty.
    """
    if history is None:
        return []
    [[start, above]] = looking_back(lambdas, 1, 2)
    x0, _ = history(jax.nn.sigmoid(2 * above))
    x0_start, _ = history(jax.nn.sigmoid(2 * start))
    return [x0 - x0_start]


def known_eps(
    history: History | None, schedule: NoiseSchedule, t: Float[Array, ""], s: Float[Array, ""]
) -> list[Images]:
    """Returns the history's eps at t + (t - s), minus the history's eps at t.

    The time t + (t - s) is limited to T - 1. Without a history, the list is empty.
    """
    if history is None:
        return []
    above = jnp.minimum(t + (t - s), schedule.num_timesteps - 1)
    _, eps = history(schedule.alpha_bar(above))
    _, eps_start = history(schedule.alpha_bar(t))
    return [eps - eps_start]


def ending_in_x0(
    x_weights: Float[Array, "rest"], weights: Float[Array, "rest length"]
) -> tuple[Float[Array, "steps"], Float[Array, "steps length"]]:
    """Appends the weights of the last step, which returns the newest prediction of x_0."""
    return jnp.append(x_weights, 0), jnp.concatenate([weights, jnp.eye(1, weights.shape[1])])


dpmpp_2m = functools.partial(dpmpp, 2)
dpmpp_3m = functools.partial(dpmpp, 3)
unipc_2 = functools.partial(unipc, 2)
unipc_3 = functools.partial(unipc, 3)
