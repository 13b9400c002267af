"""Runge-Kutta solvers of the probability-flow ODE: `heun` on the grid, `ode` adaptive, to a tolerance."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from core.diffusion import EpsFn, NoiseSchedule
from sampling.common import intervals, predicts_x0, transfer

State = TypeVar("State")


def heun(eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Heun's second-order method, Karras et al. (2022, arXiv 2206.00364), algorithm 1.

    The ODE is d(x / signal) = eps d(sigma / signal), so a step is `transfer` with the mean of eps at its two ends. The
    step to clean data is Euler's, as in the paper: 2 n - 1 evaluations. They are scanned one by one, in turn the first
    and the second of a step.
    """
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, eps_weights = transfer(schedule, times, next_times)
    evaluations = np.arange(heun_nfe(len(times)))
    i, is_second = evaluations // 2, evaluations % 2 == 1

    def evaluate(carry, row):
        start, slope, x = carry
        t, is_second, x_weight, eps_weight = row
        eps = eps_fn(x, t)
        start, slope = jnp.where(is_second, start, x), jnp.where(is_second, (slope + eps) / 2, eps)
        return (start, slope, x_weight * start + eps_weight * slope), None

    rows = times[i + is_second], is_second, x_weights[i], eps_weights[i]
    (_, _, x), _ = jax.lax.scan(evaluate, (x, x, x), rows)
    return x


def heun_nfe(n_steps: int) -> int:
    return 2 * n_steps - 1


def ode(eps_fn: EpsFn, schedule: NoiseSchedule, x: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What every deterministic sampler tends to as steps are added between the first and the last time of its grid.

    Solves the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, equation 13) in lambda = log(signal / sigma),
    dx / dlambda = sigma (sigma x - eps), by Dormand and Prince's method of order 5 from timesteps[0] to timesteps[-1]
    (those between do not matter); x_0 is predicted from there. The local error is kept below 3e-5 in float32 and 4e-11
    in float64. Each image takes its own steps, so the others in its batch do not matter either.
    """
    ends = schedule.half_log_snr(jnp.asarray(timesteps)[jnp.array([0, -1])])
    x = jax.vmap(lambda image: integrate(probability_flow(eps_fn, schedule), image, *ends))(x)
    return predicts_x0(eps_fn, schedule)(x, timesteps[-1])


def probability_flow(eps_fn: EpsFn, schedule: NoiseSchedule) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """dx / dlambda of one image [H,W,C] as a function of lambda and the image."""

    def velocity(half_log_snr, image):
        sigma = jnp.sqrt(jax.nn.sigmoid(-2 * half_log_snr))
        return sigma * (sigma * image - eps_fn(image[None], schedule.time_at(half_log_snr))[0])

    return velocity


def integrate(velocity: Callable[[jax.Array, State], State], state: State, start: jax.Array, end: jax.Array) -> State:
    """The state, an array or a tree of them, carried from lambda = start to end; velocity is called (lambda, state)."""
    import diffrax  # takes a third of a second, and of all samplers only this needs it

    tolerance = float(jnp.finfo(start.dtype).eps) ** (2 / 3)
    return jax.tree.map(
        lambda saved: saved[0],
        diffrax.diffeqsolve(
            diffrax.ODETerm(lambda half_log_snr, state, _: velocity(half_log_snr, state)),
            diffrax.Dopri5(),
            t0=start,
            t1=end,
            dt0=None,
            y0=state,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=diffrax.ForwardMode(),
        ).ys,
    )
