"""Batches of generated images. Image i depends on the seed and i only, not on batch size or number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

import sampling
from core.diffusion import Denoiser, NoiseSchedule
from core.parallel import own_rows, replicate, round_up, shard_batch
from core.rng import image_keys, image_noise, key_for
from core.shapes import Images, ImageShape, Keys, Timesteps
from sampling.common import Callback, Evaluation, clip_x0
from sampling.late_start import DataGaussian, analytic_first_step
from sampling.time_grid import time_grid


def generate(
    config: ConfigDict,
    denoiser: Denoiser,
    gaussian: DataGaussian | None,
    timesteps: Timesteps,
    *,
    image_shape: ImageShape,
    num: int,
    batch_size: int,
    first: int = 0,
) -> Iterator[tuple[Images, int]]:
    """Predicted x_0 of `num` images by the sampler of config.sampling: pairs (batch on the devices, count).

    Args:
      config: sampler, clipping, baseline and seed are read.
      denoiser: one compilation serves all its weights and all starts.
      gaussian: the distribution of late starts, also used for the solvers' history. None: start from pure noise.
      timesteps: the grid of the sampler, descending; see `grid_of`.
      image_shape: (height, width, channels).
      num: number of images, counted from index 0.
      batch_size: rounded up to a multiple of the number of devices.
      first: images before this index are skipped; the rest are bit-identical.

    The last batch has full size, so that nothing is compiled again; its images beyond `count` are to be dropped.
    """
    batch_size = round_up(min(batch_size, num))
    run = _batch_sampler(config, denoiser, gaussian, timesteps)
    for start in range(first // batch_size * batch_size, num, batch_size):
        x0 = run(*prior(config.seed, start, batch_size, image_shape))
        skipped = max(first - start, 0)
        yield x0[skipped:] if skipped else x0, min(batch_size, num - start) - skipped


def _batch_sampler(
    config: ConfigDict,
    denoiser: Denoiser,
    gaussian: DataGaussian | None,
    timesteps: Timesteps,
    callback: Callback | None = None,
) -> Callable[[Images, Keys], Any]:
    """A function from pure noise and keys to what `sampling.sample` returns for the settings of config.sampling."""
    settings = config.sampling
    if gaussian is not None and settings.baseline == "isotropic":
        gaussian = replicate(gaussian.isotropic())
    denoiser, ab_start = replicate((denoiser, denoiser.schedule.alpha_bar(timesteps[0])))
    with_history = gaussian is not None and uses_history(config)

    def run(noise, keys):
        x_start = noise if gaussian is None else _late_start(gaussian, noise, ab_start)
        return _sample(
            denoiser,
            x_start,
            timesteps,
            keys,
            history=jax.tree_util.Partial(DataGaussian.predictions, gaussian, noise) if with_history else None,
            sampler=settings.sampler,
            clip_range=_clip_range(config),
            afs=settings.baseline == "afs",
            callback=callback,
        )

    return run


def _clip_range(config: ConfigDict) -> tuple[float, float] | None:
    """The range that predicted x_0 are clipped to, if config.sampling.clip_x0 is set."""
    if not config.sampling.clip_x0:
        return None
    return (-1.0, 1.0) if config.data.centered else (0.0, 1.0)


def uses_history(config: ConfigDict) -> bool:
    """Whether the solver of config.sampling uses the Gaussian's prediction above its late start."""
    settings = config.sampling
    if not settings.gls or settings.baseline == "no_history":
        return False
    return sampling.lookup(settings.sampler).takes_history(settings.n_steps)


def grid_of(config: ConfigDict, schedule: NoiseSchedule, late: bool) -> Timesteps:
    """The time grid of config.sampling, descending: from its t_start with a late start, else from T - 1."""
    settings = config.sampling
    t_start = settings.t_start if late else schedule.num_timesteps - 1
    return time_grid(settings.n_steps, t_start, settings.spacing, schedule)


def prior(seed: int, first: int, batch_size: int, image_shape: ImageShape) -> tuple[Images, Keys]:
    """Pure noise for the images from index `first` on, and the keys for the noise that their sampler draws."""
    indices = np.arange(first, first + batch_size, dtype=np.uint32)[own_rows(batch_size)]
    noise_rng = key_for(seed, "noise")
    sampler_rng = key_for(seed, "sampler")
    return _draw(noise_rng, sampler_rng, shard_batch(indices), shape=image_shape)


@functools.partial(jax.jit, static_argnames="shape")
def _draw(noise_rng, sampler_rng, indices, shape):
    like = jax.ShapeDtypeStruct((len(indices), *shape), jnp.float32)
    return image_noise(image_keys(noise_rng, indices), 0, like), image_keys(sampler_rng, indices)


_late_start = jax.jit(DataGaussian.sample)


@functools.partial(jax.jit, static_argnames=("sampler", "clip_range", "afs", "callback"), donate_argnames="x_start")
def _sample(denoiser, x_start, timesteps, keys, history, sampler, clip_range, afs, callback):
    if afs:
        denoiser = analytic_first_step(denoiser, timesteps[0])
    if clip_range:
        denoiser = clip_x0(denoiser, *clip_range)
    return sampling.sample(sampler, denoiser, x_start, timesteps, keys, history, callback)


def record_trajectory(
    config: ConfigDict,
    denoiser: Denoiser,
    gaussian: DataGaussian | None,
    timesteps: Timesteps,
    *,
    image_shape: ImageShape,
    num: int,
) -> tuple[Float[np.ndarray, "nfe"], Float[np.ndarray, "nfe num height width channels"]]:
    """The times of all network evaluations and the x_0 predicted at each, for the first `num` images."""
    run = _batch_sampler(config, denoiser, gaussian, timesteps, callback=_time_and_x0)
    _, (times, predictions) = run(*prior(config.seed, 0, round_up(num), image_shape))
    return np.asarray(times), np.asarray(predictions)[:, :num]


def _time_and_x0(evaluation: Evaluation) -> tuple[Float[Array, ""], Images]:
    return evaluation.t, evaluation.x0
