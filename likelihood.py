"""Bits per dimension by two routes: the probability-flow ODE, and the variational bound of Ho et al. (2020).

Each is the length of a lossless code of the 256 grey levels, over the number of values in an image; less is better.
They are lengths of two codes, made of one network, and differ for reasons that no bug is part of:

- The chain. The ODE's density is that of a deterministic flow from N(0, I), found to the solver's tolerance. The bound
  belongs to a chain of Gaussian steps of variance beta_t, right where the data vary by more than sigma_t. Where they
  do not, as on a black margin, it adds up to 0.49 bits over all steps, even if eps is exact.
- The levels. The ODE knows densities alone, so it spreads a level evenly over its bin, which only adds to the length
  (Theis et al. 2016, arXiv 1511.01844). The decoder L_0 has exact probabilities, and its outermost bins
  are open: a pixel known to be black takes the decoder 0.6 bits and the ODE 1.7.
- What both share. At t = 0 noise of standard deviation sigma_0 = 0.01 is left, 1.3 grey levels where data are centered,
  and below it no network was trained. So the ODE ends there, not at t = -1, and gives the density of data with that
  noise, at images without it. It is a proper density, so the length stays an honest one, longer by about
  (sigma_0 / s)^4 / 4 nats a dimension than that of clean data which vary by s. The decoder's variance beta_0 =
  sigma_0^2 blurs as much.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from core import parallel, tables
from core.diffusion import EpsFn, NoiseSchedule
from core.errors import UserError
from core.rng import image_keys, image_noise, key_for
from datasets import keyed_batches
from losses import ddpm_loss
from sampling.runge_kutta import integrate, probability_flow

ROWS = {  # a name in the results to what it is called in a table
    "ode": "probability-flow ODE",
    "bound": "variational bound",
    "L_0": "  L_0, the decoder",
    "L_t": "  sum of L_t",
    "L_T": "  L_T, the prior",
}


def measure(config: ConfigDict, eps_fn: EpsFn, schedule: NoiseSchedule, images: np.ndarray) -> dict[str, Any]:
    """The mean and standard error of every row of ROWS over uint8 images [N,H,W,C], N at least 2.

    eps_fn is a pytree, so that one compilation serves all weights. The result depends on config.seed and the images
    alone, not on batch size or device count. Raises UserError where it is not finite.
    """
    settings, centered, bits = config.eval, config.data.centered, []
    batch_size = parallel.round_up(min(settings.batch_size, len(images)))
    with tqdm(total=len(images), desc="bits per dimension", unit="image") as progress:
        for batch, keys, count in keyed_batches(images, batch_size, key_for(config.seed, "likelihood")):
            ode = ode_bits(eps_fn, schedule, batch, keys, centered, settings.bpd_exact_divergence)
            terms = bound_bits(eps_fn, schedule, batch, keys, centered)
            columns = {"ode": ode, "bound": sum(terms.values())} | terms
            bits.append(np.stack([parallel.all_rows(columns[name]).astype(np.float64) for name in ROWS])[:, :count])
            progress.update(count)
    values = np.concatenate(bits, axis=1)
    if not np.isfinite(values).all():
        raise UserError("bits per dimension: NaN or infinity; did the training diverge?")
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(len(images))
    return {
        "split": settings.bpd_dataset,
        "num_images": len(images),
        "divergence": "exact" if settings.bpd_exact_divergence else "hutchinson",
        **{
            name: {"mean": float(mean), "standard_error": float(error)}
            for name, mean, error in zip(ROWS, means, errors, strict=True)
        },
    }


def table(bits: dict[str, Any]) -> str:
    """What `measure` returns, both routes one under the other."""
    header = f"bits per dimension of {bits['num_images']} {bits['split']} images"
    rows = [[label, f"{bits[name]['mean']:.4f}", f"{bits[name]['standard_error']:.4f}"] for name, label in ROWS.items()]
    return tables.aligned((header, "mean", "standard error"), rows)


@functools.partial(jax.jit, static_argnames=("centered", "exact"))
def ode_bits(
    eps_fn: EpsFn, schedule: NoiseSchedule, images: jax.Array, keys: jax.Array, centered: bool, exact: bool = False
) -> jax.Array:
    """Bits per dimension, [B], of uint8 images [B,H,W,C] under the density of the probability-flow ODE at t = 0.

    Song et al. (2021, arXiv 2011.13456), equation 39: d log p / dlambda = -div (dx / dlambda) along the flow, from
    the image with uniform noise of one grey level, times signal(0), to N(0, I) at T-1. The divergence is
    Hutchinson's estimate from one Rademacher probe (unbiased), or exact. Each image takes its own steps, at the
    tolerance of the sampler `ode`; its noise and probe come from its key.
    """
    flow = probability_flow(lambda x, t: eps_fn(x, jnp.full(len(x), t)), schedule)
    start, end = schedule.half_log_snr(jnp.array([0, schedule.num_timesteps - 1]))
    dim = math.prod(images.shape[1:])

    def nats(image, key):
        """Minus the log density, over the dimension."""
        noise_key, probe_key = image_keys(key, schedule.num_timesteps + jnp.arange(2))  # the bound uses 0 .. T-1
        noisy = image + jax.random.uniform(noise_key, image.shape, minval=-0.5, maxval=0.5)
        probes = math.sqrt(dim) * jnp.eye(dim) if exact else jax.random.rademacher(probe_key, (1, dim), jnp.float32)

        def velocity(half_log_snr, state):
            def along(probe):
                tangent = probe.reshape(image.shape)
                slope, change = jax.jvp(functools.partial(flow, half_log_snr), state[:1], (tangent,))
                return slope, jnp.vdot(tangent, change)

            slope, traces = jax.vmap(along, out_axes=(None, 0))(probes)
            return slope, traces.mean() / dim

        x0 = datasets.to_network_range(noisy, centered)
        x, growth = integrate(velocity, (schedule.signal(0) * x0, jnp.zeros(())), start, end)
        return -norm.logpdf(x).mean() - growth - 0.5 * schedule.log_alpha_bar(0)

    return (jax.vmap(nats)(images, keys) - math.log(bin_width(centered))) / math.log(2)


@functools.partial(jax.jit, static_argnames="centered")
def bound_bits(
    eps_fn: EpsFn, schedule: NoiseSchedule, images: jax.Array, keys: jax.Array, centered: bool
) -> dict[str, jax.Array]:
    """The terms of the variational bound on -log2 p, in bits per dimension, each [B], of uint8 images [B,H,W,C].

    Ho et al. (2020), equation 5, with one draw of the noise for every t from the image's key. "L_0" is the decoder,
    "L_t" the sum over all times between, in the form of equation 12, and "L_T" the prior. The paper counts t from 1:
    its L_0, L_{t-1} and L_T are here those of t = 0, t and T-1. Of the two reverse variances of its section 3.2 this
    is beta_t, at the decoder too. The posterior variance, smaller by (1 - ab_{t-1}) / (1 - ab_t), is right only for
    data that do not vary, adds up to 0.67 bits for those that do, and is 0 at the decoder. Predictions are not clipped.
    """
    x0 = datasets.to_network_range(images, centered)

    def step(total, t):
        beta, variance = schedule.betas[t], schedule.sigma(t) ** 2
        errors = ddpm_loss(eps_fn, schedule, x0, jnp.full(len(x0), t), image_noise(keys, t, x0))
        shrinkage = -beta * schedule.alpha_bar(t - 1) / variance  # of the posterior variance against beta
        return total + (shrinkage - jnp.log1p(shrinkage) + beta / ((1 - beta) * variance) * errors) / 2, None

    between, _ = jax.lax.scan(step, jnp.zeros(len(x0)), jnp.arange(1, schedule.num_timesteps))
    x_t = schedule.diffuse(x0, 0, image_noise(keys, 0, x0))
    mean = schedule.predict_x0(x_t, 0, eps_fn(x_t, jnp.zeros(len(x0))))
    ab = schedule.alpha_bar(schedule.num_timesteps - 1)
    nats = {
        "L_0": -per_dimension(log_probability(images, mean, jnp.sqrt(schedule.betas[0]), centered)),
        "L_t": between,
        "L_T": per_dimension(ab * (x0**2 - 1) - jnp.log1p(-ab)) / 2,
    }
    return {name: value / math.log(2) for name, value in nats.items()}


def log_probability(levels: jax.Array, mean: jax.Array, scale: jax.Array, centered: bool) -> jax.Array:
    """The log of the mass that N(mean, scale^2) puts on the bin of each grey level 0..255: Ho et al., equation 13.

    levels and mean, in the network's range, are of one shape. The bins of 0 and 255 are open, so that all masses sum
    to 1; accurate far out in the tails, where the authors' code stops at 1e-12.
    """
    centre, half = datasets.to_network_range(levels, centered), bin_width(centered) / 2
    low = jnp.where(levels == 0, -jnp.inf, (centre - half - mean) / scale)
    high = jnp.where(levels == 255, jnp.inf, (centre + half - mean) / scale)
    low, high = jnp.where(low + high > 0, -high, low), jnp.where(low + high > 0, -low, high)  # the lower tail
    return norm.logcdf(high) + jax.nn.log1mexp(norm.logcdf(high) - norm.logcdf(low))


def bin_width(centered: bool) -> float:
    """The distance of two grey levels in the network's range."""
    return (2 if centered else 1) / 255


def per_dimension(values: jax.Array) -> jax.Array:
    """The mean over all axes of [B, ...] but the first."""
    return values.mean(axis=tuple(range(1, values.ndim)))
