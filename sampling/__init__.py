"""The samplers, by name, and `sample`, which runs any of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from core.diffusion import Denoiser
from core.rng import image_keys
from core.shapes import Images, Keys, RandomKey, Timesteps
from sampling.common import Callback, History, Records
from sampling.ddim import ddim, ddpm
from sampling.multistep import deis_3, dpmpp_2m, dpmpp_3m, ipndm, unipc_2, unipc_3
from sampling.pndm import pndm, pndm_nfe
from sampling.runge_kutta import heun, heun_nfe, ode


class Sampler(NamedTuple):
    """One row of SAMPLERS.

    `run` is called as run(denoiser, x, timesteps, callback) and returns (x0, records). Stochastic samplers also take
    the argument `keys`, and multistep solvers the argument `history`.
    """

    run: Callable[..., tuple[Images, Records]]
    order: int | None = None  # order of convergence; None for stochastic and adaptive samplers
    nfe: Callable[[int], int | None] = lambda n_steps: n_steps
    needs_rng: bool = False
    history_from: int | None = None  # the smallest number of steps with which a history is used; None: never

    def takes_history(self, n_steps: int) -> bool:
        """Whether the solver uses a history with this number of steps."""
        return self.history_from is not None and n_steps >= self.history_from


# The history is the predictions of the data's Gaussian or mixture at times t >= t_start. Its change from t_start to an
# earlier time replaces the missing earlier prediction of a multistep solver (see `multistep`). DPM-Solver++ and UniPC-2
# use it from four steps on. With three equal steps in t, the second step is several times longer in log-SNR than the
# first, and amplifies the errors of the history by that factor. UniPC-3 uses it from five steps on, because at n = 4 it
# made scores on digits worse (docs/results.md).
SAMPLERS = {
    "ddpm": Sampler(ddpm, needs_rng=True),
    "ddim": Sampler(ddim, order=1),
    "pndm": Sampler(pndm, order=2, nfe=pndm_nfe),
    "dpmpp_2m": Sampler(dpmpp_2m, order=2, history_from=4),
    "dpmpp_3m": Sampler(dpmpp_3m, order=2, history_from=4),
    "unipc_2": Sampler(unipc_2, order=3, history_from=4),
    "unipc_3": Sampler(unipc_3, order=3, history_from=5),
    "ipndm": Sampler(ipndm, order=2, history_from=1),
    "deis_3": Sampler(deis_3, order=2, history_from=1),
    "heun": Sampler(heun, order=2, nfe=heun_nfe),
    "ode": Sampler(ode, nfe=lambda n_steps: None),
}


def lookup(name: str) -> Sampler:
    """Returns the row of SAMPLERS. Raises ValueError for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is not known; choose from {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def nfe(name: str, n_steps: int) -> int | None:
    """Returns the number of network evaluations of `sample`, or None for `ode`, whose steps are adaptive."""
    return lookup(name).nfe(n_steps)


def applies(baseline: str, name: str, n_steps: int) -> bool:
    """Whether one of late_start.BASELINES changes the result of a sampler with this number of steps."""
    if baseline == "no_history":
        return lookup(name).takes_history(n_steps)
    if baseline == "leading":
        return n_steps >= 2
    return baseline != "afs" or (n_steps >= 2 and nfe(name, n_steps) is not None)


def sample(
    name: str,
    denoiser: Denoiser,
    x_start: Images,
    timesteps: Timesteps,
    rng: RandomKey | Keys | None = None,
    history: History | None = None,
    callback: Callback | None = None,
) -> Images | tuple[Images, Any]:
    """Runs a sampler from x_start at timesteps[0] down to clean data.

    Args:
      name: one of SAMPLERS.
      denoiser: the noise prediction and its schedule.
      x_start: samples of x_t at t = timesteps[0]. All computations have the dtype of x_start, float32 or float64.
      timesteps: strictly descending (see `time_grid`); may be traced.
      rng: for stochastic samplers, one key, or one key per image (see `core.rng.image_keys`).
      history: predictions at times t >= timesteps[0], for multistep solvers. Other samplers, and solvers with too few
        steps (see `Sampler.history_from`), ignore it. If x_start = gaussian.sample(noise, alpha_bar), pass
        history=functools.partial(gaussian.predictions, noise).
      callback: called with a `common.Evaluation` at every network evaluation. It is traced, so it must be pure.

    Returns:
      The predicted x_0. With a callback: (x_0, the results of the callback, stacked over all evaluations).

    Raises ValueError for an unknown name, a missing rng, or a callback with `ode`.
    """
    sampler = lookup(name)
    if sampler.needs_rng and rng is None:
        raise ValueError(f"sampler {name!r} draws noise and needs an rng")
    options = {}
    if sampler.needs_rng:
        options["keys"] = image_keys(rng, jnp.arange(len(x_start))) if rng.ndim == 0 else rng
    if sampler.takes_history(len(timesteps)):
        options["history"] = history
    x0, records = sampler.run(denoiser.astype(x_start.dtype), x_start, timesteps, callback, **options)
    return x0 if callback is None else (x0, records)
