"""Batches of generated images. Image i depends on the seed and i only, not on batch size or number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32
from ml_collections import ConfigDict

import sampling
from core.arithmetic import ceil_div
from core.diffusion import Denoiser, NoiseSchedule
from core.parallel import own_rows, replicate, round_up, shard_batch
from core.rng import image_keys, image_noise, key_for
from core.shapes import Images, ImageShape, Keys, Labels, Timesteps
from sampling.common import Callback, Evaluation, clip_x0
from sampling.late_start import Components, DataMixture, analytic_first_step
from sampling.time_grid import time_grid


def generate(
    config: ConfigDict,
    denoiser: Denoiser,
    mixture: DataMixture | None,
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
      mixture: the distribution of late starts, also used for the solvers' history. None: start from pure noise.
      timesteps: the grid of the sampler, descending; see `grid_of`.
      image_shape: (height, width, channels).
      num: number of images, counted from index 0.
      batch_size: rounded up to a multiple of the number of devices.
      first: images before this index are skipped; the rest are bit-identical.

    The last batch has full size, so that nothing is compiled again; its images beyond `count` are to be dropped.
    """
    batch_size = round_up(min(batch_size, num))
    run = _batch_sampler(config, denoiser, mixture, timesteps)
    for start in range(first // batch_size * batch_size, num, batch_size):
        noise, keys = prior(config.seed, start, batch_size, image_shape)
        component = _components(config, mixture, first=start, batch_size=batch_size)
        x0 = run(noise, keys, component, labels_of(config, start, batch_size))
        skipped = max(first - start, 0)
        yield x0[skipped:] if skipped else x0, min(batch_size, num - start) - skipped


def _batch_sampler(
    config: ConfigDict,
    denoiser: Denoiser,
    mixture: DataMixture | None,
    timesteps: Timesteps,
    callback: Callback | None = None,
) -> Callable[[Images, Keys, Components | None, Labels | None], Any]:
    """A function from pure noise, keys, components and labels to what `sampling.sample` returns for config.sampling."""
    settings = config.sampling
    if mixture is not None and settings.baseline == "isotropic":
        mixture = replicate(mixture.isotropic())
    denoiser, ab_start = replicate((denoiser, denoiser.schedule.alpha_bar(timesteps[0])))
    with_history = mixture is not None and uses_history(config)

    def run(noise, keys, component, labels):
        x_start = noise if mixture is None else _late_start(mixture, noise, component, ab_start)
        past = jax.tree_util.Partial(DataMixture.predictions, mixture, noise, component) if with_history else None
        return _sample(
            of_labels(config, denoiser, labels),
            x_start,
            timesteps,
            keys,
            history=past,
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
    """The time grid of config.sampling, descending.

    It begins at t_start with a late start. From pure noise it begins at T - 1, or, for the baseline "leading", at
    T - T / n_steps, rounded down: at 666, 800 and 900 for 3, 5 and 10 of 1,000 times, as in the paper.
    """
    settings = config.sampling
    num_timesteps = schedule.num_timesteps
    t_start = settings.t_start if late else num_timesteps - 1
    if settings.baseline == "leading":
        t_start = num_timesteps - ceil_div(num_timesteps, settings.n_steps)
    return time_grid(settings.n_steps, t_start, settings.spacing, schedule)


def _components(config: ConfigDict, mixture: DataMixture | None, *, first: int, batch_size: int) -> Components | None:
    """The component of each image from index `first` on, on the devices; None without a late start.

    Where the network is given classes, the components of a mixture of classes are those of the images' labels.
    """
    if mixture is None:
        return None
    weights = np.asarray(mixture.weights)
    if config.model.label_dim and len(weights) > 1:
        weights = np.full(len(weights), 1 / len(weights))
    return shard_batch(component_sequence(weights, config.seed, first, batch_size)[own_rows(batch_size)])


def classes_of(config: ConfigDict) -> list[int]:
    """The classes that are drawn from a network with classes: sampling.classes, or all."""
    model = config.model
    return list(config.sampling.classes) or [label for label in range(model.label_dim) if label != model.null_class]


def labels_of(config: ConfigDict, first: int, batch_size: int) -> Labels | None:
    """The class of each image from index `first` on, on the devices; None for a network without classes.

    The classes are uniform; the label of an image depends on the seed and its index only (see `component_sequence`).
    """
    if not config.model.label_dim:
        return None
    classes = np.array(classes_of(config), np.int32)
    uniform = np.full(len(classes), 1 / len(classes))
    labels = classes[component_sequence(uniform, config.seed, first, batch_size)]
    return shard_batch(labels[own_rows(batch_size)])


def of_labels(config: ConfigDict, denoiser: Denoiser, labels: Labels | None) -> Denoiser:
    """The denoiser of images with these labels, guided by sampling.guidance."""
    if labels is None:
        return denoiser
    guidance = config.sampling.guidance
    return denoiser.of_classes(labels, guidance, config.model.null_class if guidance != 1 else None)


def component_sequence(
    weights: Float[np.ndarray, "components"], seed: int, first: int, count: int
) -> Int32[np.ndarray, "{count}"]:
    """The components of the images with indices first .. first + count - 1.

    The component of an image depends on the seed, its index and the weights only. The sequence is stratified: among the
    first N images, component c occurs N weights[c] times, up to a difference of less than 2. The j-th occurrence of
    component c is at the time (j + u) / weights[c], with u uniform in [0, 1), and the images take the occurrences in
    the order of their times.
    """
    if len(weights) == 1:
        return np.zeros(count, np.int32)
    end = first + count
    needed = np.ceil((end + len(weights)) * weights).astype(int) + 1
    times = []
    for component, (weight, occurrences) in enumerate(zip(weights, needed, strict=True)):
        uniform = np.random.default_rng((seed, component)).random(occurrences)
        times.append((np.arange(occurrences) + uniform) / weight)
    order = np.argsort(np.concatenate(times), kind="stable")
    return np.repeat(np.arange(len(weights), dtype=np.int32), needed)[order[first:end]]


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


_late_start = jax.jit(DataMixture.sample)


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
    mixture: DataMixture | None,
    timesteps: Timesteps,
    *,
    image_shape: ImageShape,
    num: int,
) -> tuple[Float[np.ndarray, "nfe"], Float[np.ndarray, "nfe num height width channels"]]:
    """The times of all network evaluations and the x_0 predicted at each, for the first `num` images."""
    size = round_up(num)
    run = _batch_sampler(config, denoiser, mixture, timesteps, callback=_time_and_x0)
    noise, keys = prior(config.seed, 0, size, image_shape)
    component = _components(config, mixture, first=0, batch_size=size)
    _, (times, predictions) = run(noise, keys, component, labels_of(config, 0, size))
    return np.asarray(times), np.asarray(predictions)[:, :num]


def _time_and_x0(evaluation: Evaluation) -> tuple[Float[Array, ""], Images]:
    return evaluation.t, evaluation.x0
