"""The samplers, by name, and the one call that runs any of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from core.diffusion import EpsFn, NoiseSchedule
from core.rng import image_keys
from sampling.common import History
from sampling.ddim import ddim, ddpm
from sampling.multistep import deis_3, dpmpp_2m, dpmpp_3m, ipndm, unipc_2, unipc_3
from sampling.pndm import pndm, pndm_nfe
from sampling.runge_kutta import heun, heun_nfe, ode


class Sampler(NamedTuple):
    run: Callable[..., jax.Array]  # (eps_fn, schedule, x [B,H,W,C], timesteps [n]) -> x0; also keys [B], or a history
    order: int | None = None  # of convergence, as it opens; None where no fixed step has one
    nfe: Callable[[int], int | None] = lambda n_steps: n_steps
    needs_rng: bool = False
    history_from: int | None = None  # the least n that opens with a history; None for what looks back on nothing

    def takes_history(self, n_steps: int) -> bool:
        return self.history_from is not None and n_steps >= self.history_from


# Equal steps of t, if only three, make the second step of DPM-Solver++ and UniPC several times as long in lambda as the
# first: it would carry what a history gets wrong as many times as far.
SAMPLERS = {
    "ddpm": Sampler(ddpm, needs_rng=True),
    "ddim": Sampler(ddim, order=1),
    "pndm": Sampler(pndm, order=2, nfe=pndm_nfe),
    "dpmpp_2m": Sampler(dpmpp_2m, order=2, history_from=4),
    "dpmpp_3m": Sampler(dpmpp_3m, order=2, history_from=4),
    "unipc_2": Sampler(unipc_2, order=3, history_from=4),
    "unipc_3": Sampler(unipc_3, order=3, history_from=4),
    "ipndm": Sampler(ipndm, order=2, history_from=1),
    "deis_3": Sampler(deis_3, order=2, history_from=1),
    "heun": Sampler(heun, order=2, nfe=heun_nfe),
    "ode": Sampler(ode, nfe=lambda n_steps: None),
}


def lookup(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is not known; choose from {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def nfe(name: str, n_steps: int) -> int | None:
    """How many times `sample` calls eps_fn; None for `ode`, whose tolerance decides that as it runs."""
    return lookup(name).nfe(n_steps)


def applies(baseline: str, name: str, n_steps: int) -> bool:
    """Whether one of late_start.BASELINES changes what a sampler does in so many steps."""
    if baseline == "no_history":
        return lookup(name).takes_history(n_steps)
    return baseline != "afs" or (n_steps >= 2 and nfe(name, n_steps) is not None)


def sample(
    name: str,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    x_start: jax.Array,
    timesteps: jax.Array,
    rng: jax.Array | None = None,
    history: History | None = None,
) -> jax.Array:
    """Follows a sampler from x_start at timesteps[0] down to clean data.

    Args:
      name: one of SAMPLERS.
      eps_fn: the noise prediction, called as eps_fn(x [B,H,W,C], t [B]).
      schedule: the schedule of eps_fn.
      x_start: [B,H,W,C], distributed as x_t at t = timesteps[0]; float64 computes in float64.
      timesteps: [n], strictly descending integers (see `time_grid`); may be traced.
      rng: for stochastic samplers, one key, or one per image [B] (see `image_keys`).
      history: what was predicted on the way to x_start, for multistep solvers; others, and too few steps (see
        `history_from`), have no use for it. For a late start from `noise` it is
        functools.partial(gaussian.predictions, noise).

    Returns:
      The predicted x_0 [B,H,W,C]. Raises ValueError for an unknown name or a missing rng.
    """
    sampler = lookup(name)
    schedule = schedule.astype(x_start.dtype)
    if sampler.needs_rng and rng is None:
        raise ValueError(f"sampler {name!r} draws noise and needs an rng")
    keys = image_keys(rng, jnp.arange(len(x_start))) if rng is not None and rng.ndim == 0 else rng

    def batch_eps_fn(x, t):
        return eps_fn(x, jnp.full(len(x), t, x.dtype))

    needed = {"keys": keys} if sampler.needs_rng else {}
    if sampler.takes_history(len(timesteps)):
        needed["history"] = history
    return sampler.run(batch_eps_fn, schedule, x_start, timesteps, **needed)
