"""Generates images in batches. Image i depends only on the seed and i, not on batch size or number of devices."""

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
    """Samples images with the sampler of config.sampling. Yields pairs (batch of x_0 on the devices, count).

    Args:
      config: sampler, clipping, baseline and seed are read.
      denoiser: the network and its schedule. New weights or starts do not need a new compilation.
      mixture: the distribution of late starts, also used for the history of multistep solvers. None: pure noise.
      timesteps: the grid of the sampler, descending; see `grid_of`.
      image_shape: (height, width, channels).
      num: the images have the indices first .. num - 1.
      batch_size: rounded up to a multiple of the number of devices.
      first: images before this index are skipped. The other images are bit-identical to those of a run with first=0.

    The last batch has full size, so that nothing is compiled again. Callers must drop its images beyond `count`.
    """
    batch_size = round_up(min(batch_size, num))
    run = _batch_sampler(config, denoiser, mixture, timesteps)
    for start in range(first // batch_size * batch_size, num, batch_size):
        x0 = run(*_inputs(config, mixture, first=start, batch_size=batch_size, image_shape=image_shape))
        skipped = max(first - start, 0)
        yield x0[skipped:] if skipped else x0, min(batch_size, num - start) - skipped


def draw(
    config: ConfigDict,
    denoiser: Denoiser,
    mixture: DataMixture | None,
    *,
    timesteps: Timesteps,
    image_shape: ImageShape,
    first: int,
    batch_size: int,
) -> Images:
    """Draws one batch of the images of `generate`: those with the indices first .. first + batch_size - 1.

    batch_size: a multiple of the number of devices.
    """
    run = _batch_sampler(config, denoiser, mixture, timesteps)
    return run(*_inputs(config, mixture, first=first, batch_size=batch_size, image_shape=image_shape))


def _inputs(
    config: ConfigDict, mixture: DataMixture | None, *, first: int, batch_size: int, image_shape: ImageShape
) -> tuple[Images, Keys, Components | None, Labels | None]:
    """Returns noise, keys, components and labels of the images from index `first` on."""
    noise, keys = prior(config.seed, first, batch_size, image_shape)
    component = _components(config, mixture, first=first, batch_size=batch_size)
    return noise, keys, component, labels_of(config, first, batch_size)


def _batch_sampler(
    config: ConfigDict,
    denoiser: Denoiser,
    mixture: DataMixture | None,
    timesteps: Timesteps,
    callback: Callback | None = None,
) -> Callable[[Images, Keys, Components | None, Labels | None], Any]:
    """Returns a function of (noise, keys, components, labels) that runs `sampling.sample` as config.sampling says."""
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
    """Returns the range to which predicted x_0 are clipped, or None if config.sampling.clip_x0 is false."""
    if not config.sampling.clip_x0:
        return None
    return (-1.0, 1.0) if config.data.centered else (0.0, 1.0)


def uses_history(config: ConfigDict) -> bool:
    """Whether the solver of config.sampling uses a history: predictions of the Gaussian at times above t_start."""
    settings = config.sampling
    if not settings.gls or settings.baseline == "no_history":
        return False
    return sampling.lookup(settings.sampler).takes_history(settings.n_steps)


def grid_of(config: ConfigDict, schedule: NoiseSchedule, late: bool) -> Timesteps:
    """Returns the time grid of config.sampling, descending.

    With a late start the grid begins at t_start. From pure noise it begins at T - 1, or, for the baseline "leading", at
    T - T / n_steps, rounded down. For T = 1,000 and 3, 5 and 10 steps this is 666, 800 and 900. The paper's runs from
    pure noise seem to begin there.
    """
    settings = config.sampling
    num_timesteps = schedule.num_timesteps
    t_start = settings.t_start if late else num_timesteps - 1
    if settings.baseline == "leading":
        t_start = num_timesteps - ceil_div(num_timesteps, settings.n_steps)
    return time_grid(settings.n_steps, t_start, settings.spacing, schedule)


def _components(config: ConfigDict, mixture: DataMixture | None, *, first: int, batch_size: int) -> Components | None:
    """Returns the component of each image from index `first` on, on the devices, or None without a late start.

    If the network has classes and the mixture has a component for each class, every image gets the component of its
    class.
    """
    if mixture is None:
        return None
    weights = np.asarray(mixture.weights)
    if config.model.label_dim and len(weights) > 1:
        weights = np.full(len(weights), 1 / len(weights))
    return shard_batch(component_sequence(weights, config.seed, first, batch_size)[own_rows(batch_size)])


def classes_of(config: ConfigDict) -> list[int]:
    """Returns the classes that are drawn from a network with classes: sampling.classes, or all classes."""
    model = config.model
    return list(config.sampling.classes) or [label for label in range(model.label_dim) if label != model.null_class]


def labels_of(config: ConfigDict, first: int, batch_size: int) -> Labels | None:
    """Returns the class of each image from index `first` on, on the devices, or None for a network without classes.

    All classes are equally frequent. The label of an image depends only on the seed and its index (see
    `component_sequence`).
    """
    if not config.model.label_dim:
        return None
    classes = np.array(classes_of(config), np.int32)
    uniform = np.full(len(classes), 1 / len(classes))
    labels = classes[component_sequence(uniform, config.seed, first, batch_size)]
    return shard_batch(labels[own_rows(batch_size)])


def of_labels(config: ConfigDict, denoiser: Denoiser, labels: Labels | None) -> Denoiser:
    """Returns the denoiser conditioned on these labels, with the weight of guidance in sampling.guidance."""
    if labels is None:
        return denoiser
    guidance = config.sampling.guidance
    return denoiser.of_classes(labels, guidance, config.model.null_class if guidance != 1 else None)


def component_sequence(
    weights: Float[np.ndarray, "components"], seed: int, first: int, count: int
) -> Int32[np.ndarray, "{count}"]:
    """Returns the components of the images with indices first .. first + count - 1.

    The component of an image depends only on the seed, its index and the weights. The sequence is stratified: among the
    first N images, component c occurs N weights[c] times, with an error of less than 2. To construct it, the j-th
    occurrence of component c gets the position (j + u) / weights[c], with u uniform in [0, 1). All occurrences are then
    sorted by position, and image i takes the i-th.
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
    """Returns pure noise for the images from index `first` on, and the keys for the noise that the sampler draws."""
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
    """Returns the times of all network evaluations, and the x_0 predicted at each, for the first `num` images."""
    size = round_up(num)
    run = _batch_sampler(config, denoiser, mixture, timesteps, callback=_time_and_x0)
    _, (times, predictions) = run(*_inputs(config, mixture, first=0, batch_size=size, image_shape=image_shape))
    return np.asarray(times), np.asarray(predictions)[:, :num]


def _time_and_x0(evaluation: Evaluation) -> tuple[Float[Array, ""], Images]:
    return evaluation.t, evaluation.x0
