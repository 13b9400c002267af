"""Images from a network by global index: the same image for any batch size and any number of devices."""

import functools
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import io_callback
from ml_collections import ConfigDict

import sampling
from core.diffusion import EpsFn, NoiseSchedule
from core.parallel import own_rows, replicate, round_up, shard_batch
from core.rng import image_keys, image_noise, key_for
from sampling.common import clip_x0
from sampling.late_start import DataGaussian, analytic_first_step
from sampling.time_grid import time_grid


def generate(
    config: ConfigDict,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    gaussian: DataGaussian | None,
    timesteps: np.ndarray,
    image_shape: tuple[int, int, int],
    num: int,
    batch_size: int,
    first: int = 0,
) -> Iterator[tuple[jax.Array, int]]:
    """Predicted x_0 as config.sampling says, `num` images in all: (batch [B, H, W, C] on the devices, count).

    timesteps: the grid that the sampler visits, [n], descending; see `grid_of`.

    The last batch is drawn whole rather than compiled anew for its size; what lies beyond its count is to be dropped.
    eps_fn is a pytree (see `run_lib.load_eps_fn`), so that one compilation serves all weights and all starts.
    gaussian is what a late start draws from, and whose predictions are its history; without one the samplers start from
    pure noise.
    The images before index `first` are left out, and all others are what they are with them, bit by bit.
    """
    settings = config.sampling
    clip_range = ((-1.0, 1.0) if config.data.centered else (0.0, 1.0)) if settings.clip_x0 else None
    if gaussian is not None and settings.baseline == "isotropic":
        gaussian = replicate(gaussian.isotropic())
    schedule, ab_start = replicate((schedule, schedule.alpha_bar(timesteps[0])))
    batch_size, afs = round_up(min(batch_size, num)), settings.baseline == "afs"
    known = gaussian is not None and opens_with_history(config)
    for start in range(first // batch_size * batch_size, num, batch_size):
        noise, keys = prior(config, start, batch_size, image_shape)
        x_start = noise if gaussian is None else _late_start(gaussian, noise, ab_start)
        history = jax.tree_util.Partial(DataGaussian.predictions, gaussian, noise) if known else None
        x0 = _sample(settings.sampler, clip_range, afs, eps_fn, schedule, x_start, timesteps, keys, history)
        skipped = max(first - start, 0)
        yield x0[skipped:] if skipped else x0, min(batch_size, num - start) - skipped


def opens_with_history(config: ConfigDict) -> bool:
    """Whether the solver of config.sampling is told what the data's Gaussian predicts above its late start."""
    settings = config.sampling
    wanted = settings.gls and settings.baseline != "no_history"
    return wanted and sampling.lookup(settings.sampler).takes_history(settings.n_steps)


def grid_of(config: ConfigDict, schedule: NoiseSchedule, late: bool) -> np.ndarray:
    """The grid that config.sampling names, int32 [n]: from its t_start where late, else from T-1."""
    settings = config.sampling
    return time_grid(
        settings.n_steps, settings.t_start if late else schedule.num_timesteps - 1, settings.spacing, schedule
    )


def prior(
    config: ConfigDict, first: int, batch_size: int, image_shape: tuple[int, int, int]
) -> tuple[jax.Array, jax.Array]:
    """Pure noise [B, H, W, C] of the images from index `first` on, and the keys [B] for what their sampler draws."""
    indices = np.arange(first, first + batch_size, dtype=np.uint32)[own_rows(batch_size)]
    rngs = key_for(config.seed, "noise"), key_for(config.seed, "sampler")
    return _draw(*rngs, shard_batch(indices), image_shape)


@functools.partial(jax.jit, static_argnums=3)
def _draw(noise_rng, sampler_rng, indices, shape):
    """Each image's noise [B, *shape] and the key for what its sampler draws, from its global index alone."""
    like = jax.ShapeDtypeStruct((len(indices), *shape), jax.numpy.float32)
    return image_noise(image_keys(noise_rng, indices), 0, like), image_keys(sampler_rng, indices)


_late_start = jax.jit(DataGaussian.sample)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _sample(sampler, clip_range, afs, eps_fn, schedule, x_start, timesteps, keys, history):
    eps_fn = analytic_first_step(eps_fn, schedule, timesteps[0]) if afs else eps_fn
    eps_fn = clip_x0(eps_fn, schedule, *clip_range) if clip_range else eps_fn
    return sampling.sample(sampler, eps_fn, schedule, x_start, timesteps, keys, history)


def record_trajectory(
    config: ConfigDict,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    gaussian: DataGaussian | None,
    timesteps: np.ndarray,
    image_shape: tuple[int, int, int],
    num: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What the network predicts x_0 to be each time it is asked: (times [nfe], predictions [nfe, num, H, W, C])."""
    times, predictions = [], []

    def record(t, x0):
        times.append(float(t[0]))
        predictions.append(np.asarray(x0)[:num])

    def recording(x, t):
        eps = eps_fn(x, t)
        io_callback(record, None, t, schedule.predict_x0(x, t, eps), ordered=True)
        return eps

    [(x0, _)] = generate(config, jax.tree_util.Partial(recording), schedule, gaussian, timesteps, image_shape, num, num)
    jax.block_until_ready(x0)
    jax.effects_barrier()
    return np.array(times), np.stack(predictions)
