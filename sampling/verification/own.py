"""Adapts the samplers of this project to the signature that `verify` takes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sampling
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from core.shapes import Images


def sampler_of(name: str) -> Callable[..., Images]:
    """Adapts one of `sampling.SAMPLERS`, without a history. Raises UserError for an unknown name."""
    try:
        row = sampling.lookup(name)
    except ValueError as error:
        raise UserError(f"--source=sampling:{name}: {error}") from error
    run = jax.jit(functools.partial(sampling.sample, name))  # compiled once for each number of steps

    def sampler(eps_fn: Any, alpha_bars: jax.Array, start: jax.Array, times: jax.Array) -> Images:
        betas = 1 - alpha_bars / jnp.append(1, alpha_bars[:-1])
        return run(Denoiser(eps_fn, NoiseSchedule(betas, alpha_bars)), start, times, jax.random.key(0))

    sampler.order = row.order
    sampler.nfe = row.nfe if row.nfe(1) else None
    sampler.stochastic = row.needs_rng
    return sampler
