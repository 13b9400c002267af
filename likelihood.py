"""Bits per dimension by two methods: the probability-flow ODE, and the variational bound of Ho et al. (2020).

Each is the length of a lossless code for the 256 grey levels, divided by the number of values in an image; lower is
better. The two methods define two different codes for the same network, so their lengths differ, for two reasons:

- The generative process. The ODE gives the density of a deterministic flow from N(0, I), to the solver's tolerance.
  The bound belongs to a Markov chain of Gaussian steps with variance beta_t. This variance is nearly correct if the
  standard deviation of the data is well above sigma_t, the standard deviation of the noise in x_t. If the standard
  deviation of the data is below sigma_t, as for the pixels of a black margin, beta_t is too large. These steps together
  add up to 0.49 bits per dimension to the code, even if eps is exact.
- The grey levels. The ODE gives only a density. Each grey level is therefore replaced by uniform noise over its bin,
  which can only make the code longer (Theis et al. 2016, arXiv 1511.01844). The last step of the bound, the decoder,
  gives exact probabilities of the grey levels, and its two outermost bins are unbounded. A pixel that is always black
  costs 0.6 bits in the decoder and 1.7 bits with the ODE.

Both methods have one error in common. At t = 0, images still have noise of standard deviation sigma_0 = 0.01 (1.3 grey
levels if data are centered), and the network is not trained on less noise. The ODE therefore starts at t = 0 instead of
t = -1. It gives the density of data with this noise, evaluated at images without this noise. The density is normalised,
so the code is valid. Compared with coding by the density of clean data, the code is longer by about
(sigma_0 / s)^4 / 4 nats per dimension, where s is the standard deviation of the data. The bound has the same error,
because the variance of its decoder is beta_0 = sigma_0^2.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from core import parallel, tables
from core.diffusion import Denoiser
from core.errors import UserError
from core.rng import image_keys, image_noise, key_for
from core.shapes import HostPixels, Keys, Pixels
from losses import ddpm_loss
from sampling.runge_kutta import integrate, probability_flow

ROWS = {  # name in the results: label in the table
    "ode": "probability-flow ODE",
    "bound": "variational bound",
    "L_0": "  L_0, the decoder",
    "L_t": "  sum of L_t",
    "L_T": "  L_T, the prior",
}


def measure(config: ConfigDict, denoiser: Denoiser, images: HostPixels) -> dict[str, Any]:
    """The mean and standard error over the images of each quantity in ROWS, and the settings of the measurement.

    There must be at least 2 images. Another denoiser of the same architecture does not need another compilation. The
    result depends on config.seed, but not on the batch size or the number of devices. Raises UserError if the result is
    not finite.
    """
    settings = config.eval
    exact = settings.bpd_exact_divergence
    batch_size = parallel.round_up(min(settings.batch_size, len(images)))
    rng = key_for(config.seed, "likelihood")
    bits = []
    with tqdm(total=len(images), desc="bits per dimension", unit="image") as progress:
        for batch, keys, count in datasets.keyed_batches(images, batch_size, rng):
            terms = bound_bits(denoiser, batch, keys, centered=config.data.centered)
            ode = ode_bits(denoiser, batch, keys, centered=config.data.centered, exact=exact)
            columns = {"ode": ode, "bound": sum(terms.values())} | terms
            bits.append(np.stack([parallel.all_rows(columns[name]).astype(np.float64) for name in ROWS])[:, :count])
            progress.update(count)
    values = np.concatenate(bits, axis=1)
    if not np.isfinite(values).all():
        raise UserError("bits per dimension: NaN or infinity; did the training diverge?")
    means = values.mean(axis=1)
    errors = values.std(axis=1, ddof=1) / math.sqrt(len(images))
    return {
        "split": settings.bpd_dataset,
        "num_images": len(images),
        "divergence": "exact" if exact else "hutchinson",
        **{
            name: {"mean": float(mean), "standard_error": float(error)}
            for name, mean, error in zip(ROWS, means, errors, strict=True)
        },
    }


def table(bits: dict[str, Any]) -> str:
    """The result of `measure` as a table for the terminal, one row per entry of ROWS."""
    header = f"bits per dimension of {bits['num_images']} {bits['split']} images"
    rows = [[label, f"{bits[name]['mean']:.4f}", f"{bits[name]['standard_error']:.4f}"] for name, label in ROWS.items()]
    return tables.aligned((header, "mean", "standard error"), rows)


@functools.partial(jax.jit, static_argnames=("centered", "exact"))
def ode_bits(
    denoiser: Denoiser, images: Pixels, keys: Keys, centered: bool, exact: bool = False
) -> Float[Array, "batch"]:
    """Bits per dimension of each image under the density of the probability-flow ODE at t = 0.

    Uniform noise with the width of one grey level is added to the image, and the image is scaled by signal(0). The ODE
    is then solved from t = 0 to T - 1, where the density is N(0, I), together with
    d log p / dlambda = -div (dx / dlambda) (Song et al. 2021, arXiv 2011.13456, equation 39). The divergence is either
    exact, from one derivative per dimension, or Hutchinson's unbiased estimate from one Rademacher probe. The step size
    is adapted for each image, with the tolerance of the sampler `ode`. The noise and the probe of an image are drawn
    from its key.
    """
    schedule = denoiser.schedule
    flow = probability_flow(denoiser)
    start, end = schedule.half_log_snr(jnp.array([0, schedule.num_timesteps - 1]))
    dim = math.prod(images.shape[1:])

    def nats(image, key):
        """The negative log density of one image, divided by the dimension."""
        noise_key, probe_key = image_keys(key, schedule.num_timesteps + jnp.arange(2))  # `bound_bits` uses 0 .. T-1
        noisy = image + jax.random.uniform(noise_key, image.shape, minval=-0.5, maxval=0.5)
        probes = math.sqrt(dim) * jnp.eye(dim) if exact else jax.random.rademacher(probe_key, (1, dim), noisy.dtype)

        def velocity(half_log_snr, state):
            def along(probe):
                tangent = probe.reshape(image.shape)
                slope, change = jax.jvp(functools.partial(flow, half_log_snr), state[:1], (tangent,))
                return slope, jnp.vdot(tangent, change)

            slope, traces = jax.vmap(along, out_axes=(None, 0))(probes)
            return slope, traces.mean() / dim

        x0 = datasets.to_network_range(noisy, centered)
        x, growth = integrate(velocity, (schedule.signal(0) * x0, jnp.zeros(())), start=start, end=end)
        return -norm.logpdf(x).mean() - growth - 0.5 * schedule.log_alpha_bar(0)

    return (jax.vmap(nats)(images, keys) - math.log(bin_width(centered))) / math.log(2)


@functools.partial(jax.jit, static_argnames="centered")
def bound_bits(denoiser: Denoiser, images: Pixels, keys: Keys, centered: bool) -> dict[str, Float[Array, "batch"]]:
    """The terms of the variational bound on -log2 p of each image, in bits per dimension (Ho et al. 2020, equation 5).

    The noise at every t is drawn from the image's key. The terms are "L_0", the decoder; "L_t", the sum of the KL terms
    for 0 < t <= T - 1 (equation 12); and "L_T", the prior. Times are smaller by 1 than in the paper: the paper's x_1,
    the first noised image, is x_t at t = 0 here. Predictions are not clipped.

    The paper's section 3.2 has two choices for the variance of the reverse process. Here the variance is beta_t, also
    in the decoder. The other choice, the posterior variance, is beta_t times (1 - ab_{t-1}) / (1 - ab_t). It is correct
    only for data without variation. For data of unit variance it would make the bound 0.67 bits per dimension larger.
    In the decoder it is 0 and cannot be used. In the decoder, the code of Improved DDPM (Nichol and Dhariwal 2021) uses
    the posterior variance at t = 1, which is 0.545 beta_0. Its bounds therefore differ from these.
    """
    schedule = denoiser.schedule
    x0 = datasets.to_network_range(images, centered)

    def step(total, t):
        beta = schedule.betas[t]
        variance = schedule.sigma(t) ** 2
        errors = ddpm_loss(denoiser, x0, t=jnp.full(len(x0), t), noise=image_noise(keys, t, x0))
        shrinkage = -beta * schedule.alpha_bar(t - 1) / variance  # posterior variance / beta - 1
        return total + (shrinkage - jnp.log1p(shrinkage) + beta / ((1 - beta) * variance) * errors) / 2, None

    between, _ = jax.lax.scan(step, jnp.zeros(len(x0)), jnp.arange(1, schedule.num_timesteps))
    x_t = schedule.diffuse(x0, 0, image_noise(keys, 0, x0))
    mean = denoiser.x0(x_t, 0)
    ab = schedule.alpha_bar(schedule.num_timesteps - 1)
    nats = {
        "L_0": -per_dimension(log_probability(images, mean, scale=jnp.sqrt(schedule.betas[0]), centered=centered)),
        "L_t": between,
        "L_T": per_dimension(ab * (x0**2 - 1) - jnp.log1p(-ab)) / 2,
    }
    return {name: value / math.log(2) for name, value in nats.items()}


def log_probability(
    levels: UInt8[Array, "*shape"], mean: Float[Array, "*shape"], scale: Float[Array, ""], centered: bool
) -> Float[Array, "*shape"]:
    """The log probability of the bin of each grey level under N(mean, scale^2) (Ho et al. 2020, equation 13).

    mean and scale are in the network's range. The bins of 0 and 255 are unbounded, so the probabilities sum to 1. The
    result is accurate far out in the tails, where the authors' code limits probabilities to at least 1e-12.
    """
    centre = datasets.to_network_range(levels, centered)
    half = bin_width(centered) / 2
    low = jnp.where(levels == 0, -jnp.inf, (centre - half - mean) / scale)
    high = jnp.where(levels == 255, jnp.inf, (centre + half - mean) / scale)
    upper = low + high > 0  # bins in the upper tail are mirrored to the lower tail, where logcdf is accurate
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    return norm.logcdf(high) + jax.nn.log1mexp(norm.logcdf(high) - norm.logcdf(low))


def bin_width(centered: bool) -> float:
    """The distance between two neighbouring grey levels in the network's range."""
    return (2 if centered else 1) / 255


def per_dimension(values: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """The mean over all axes except the first."""
    return values.mean(axis=tuple(range(1, values.ndim)))
