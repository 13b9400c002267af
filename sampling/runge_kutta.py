"""Runge-Kutta solvers of the probability-flow ODE: `heun` on the time grid, and `ode` with adaptive steps."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from core.diffusion import Denoiser
from core.shapes import Images, Timesteps
from sampling.common import Callback, Records, evaluate_eps, intervals, transfer

State = TypeVar("State")


def heun(
    denoiser: Denoiser, x: Images, timesteps: Timesteps, callback: Callback | None = None
) -> tuple[Images, Records]:
    """Heun's second-order method, Karras et al. (2022, arXiv 2206.00364), algorithm 1.

    The ODE is d(x / signal) = eps d(sigma / signal). So an Euler step is `transfer` with eps at the start of the step,
    and a Heun step is `transfer` with the mean of eps at both ends. The last step, to clean data, is an Euler step, as
    in the paper. This makes 2 n - 1 evaluations. The scan runs over evaluations instead of steps, so that the network
    is compiled once: even evaluations take an Euler step, odd ones repeat that step with the mean slope.
    """
    times, next_times = intervals(timesteps, x.dtype)
    x_weights, eps_weights = transfer(denoiser.schedule, times, next_times)
    evaluations = np.arange(heun_nfe(len(times)))
    step_index = evaluations // 2
    is_correction = evaluations % 2 == 1

    def evaluate(carry, row):
        step_start, euler_slope, x = carry
        t, is_correction, x_weight, eps_weight = row
        eps, record = evaluate_eps(denoiser, callback, x, t)
        step_start = jnp.where(is_correction, step_start, x)
        slope = jnp.where(is_correction, (euler_slope + eps) / 2, eps)
        return (step_start, slope, x_weight * step_start + eps_weight * slope), record

    rows = (times[step_index + is_correction], is_correction, x_weights[step_index], eps_weights[step_index])
    (_, _, x), records = jax.lax.scan(evaluate, (x, x, x), rows)
    return x, records


def heun_nfe(n_steps: int) -> int:
    """Returns the number of network evaluations: two for each step, and one for the last step."""
    return 2 * n_steps - 1


def ode(
    denoiser: Denoiser, x: Images, timesteps: Timesteps, callback: Callback | None = None
) -> tuple[Images, Records]:
    """Solves the probability-flow ODE with adaptive steps. Every deterministic sampler converges to this result.

    The ODE (Song et al. 2021, arXiv 2011.13456, equation 13) in lambda = log(signal / sigma) is
    dx / dlambda = sigma (sigma x - eps). It is solved from timesteps[0] to timesteps[-1] with the method of Dormand and
    Prince of order 5, and the x_0 predicted at timesteps[-1] is returned. Times in between are not used. The local
    error is kept below 3e-5 in float32 and 4e-11 in float64. The step sizes are chosen for each image, so the result
    does not depend on the rest of the batch. Raises ValueError for a callback, because the images have different times.
    """
    if callback is not None:
        raise ValueError("sampler 'ode' is adaptive: its images do not share their times, so it takes no callback")
    ends = denoiser.schedule.half_log_snr(jnp.asarray(timesteps)[jnp.array([0, -1])])
    x = jax.vmap(lambda image: integrate(probability_flow(denoiser), image, *ends))(x)
    return denoiser.x0(x, timesteps[-1]), None


def probability_flow(denoiser: Denoiser) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns dx / dlambda of one image [height, width, channels] as a function of lambda and the image."""

    def velocity(half_log_snr, image):
        sigma = jnp.sqrt(jax.nn.sigmoid(-2 * half_log_snr))
        return sigma * (sigma * image - denoiser.eps(image[None], denoiser.schedule.time_at(half_log_snr))[0])

    return velocity


def integrate(
    velocity: Callable[[jax.Array, State], State], state: State, start: Float[Array, ""], end: Float[Array, ""]
) -> State:
    """Integrates the state, an array or a tree, from lambda = start to end; velocity takes (lambda, state)."""
    import diffrax  # imported here because it takes a third of a second and only this function needs it

    tolerance = float(jnp.finfo(start.dtype).eps) ** (2 / 3)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda half_log_snr, state, _: velocity(half_log_snr, state)),
        diffrax.Dopri5(),
        t0=start,
        t1=end,
        dt0=None,
        y0=state,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        adjoint=diffrax.ForwardMode(),
    )
    return jax.tree.map(lambda saved: saved[0], solution.ys)
