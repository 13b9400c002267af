"""Measurements of symmetry breaking in one network. Each returns named arrays, which `figures` draws."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real, Shaped

import datasets
import sampling
from core.diffusion import Denoiser, NoiseSchedule
from core.shapes import Images, Pixels, RandomKey, Timesteps
from sampling.common import Evaluation
from sampling.late_start import ONE, DataGaussian, DataMixture
from sampling.time_grid import time_grid
from symmetry import stability
from symmetry.agreement import largest_variance_of_means, revealed_components, unexplained_eps
from symmetry.critical import RULES, continuous_times, critical_alpha_bars, critical_times, times_of

ANGLES = np.linspace(-0.2 * np.pi, 0.7 * np.pi, 46)  # positions on a path from one image (0) to another (pi / 2)
PAIRS = 16
LEVELS = 7  # number of times at which the potential and the interpolations are shown
PROBED = 8  # number of images at which the Jacobian is computed
PIXELS = 3
UTURN_STEPS = 20
LATE_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)  # the late starts that are compared with full DDIM, as fractions of T
LATE_STEPS = (10, 50, 0)  # numbers of steps from a late start; 0: one step for every time from the start down
SPLIT_RULE = "speciation"  # the rule of `critical` for mixtures

Arrays = dict[str, Shaped[np.ndarray, "..."]]
"""The result of a measurement."""

Image = Float[Array, "height width channels"]


class Subject(NamedTuple):
    """The network under study, its data, and the size of the measurements."""

    denoiser: Denoiser
    gaussian: DataGaussian
    mixtures: Mapping[str, DataMixture]  # the keys are values of sampling.components
    x0: Images  # training images, in the network's range
    centered: bool  # whether the network's range is [-1, 1]
    predict: Callable[[Pixels], Int[np.ndarray, "batch"]] | None  # the classifier, if there is one
    rng: RandomKey
    num_times: int
    num_eigenvalues: int
    n_steps: int  # number of steps of the generated trajectories

    @property
    def mean(self) -> Image:
        """Returns the mean image of the data, in the network's range."""
        return jnp.asarray(self.gaussian.mean, jnp.float32).reshape(self.gaussian.image_shape)

    @property
    def last_time(self) -> int:
        """Returns T - 1."""
        return self.denoiser.schedule.num_timesteps - 1

    def times(self) -> Float[np.ndarray, "times"]:
        """Returns num_times equally spaced times, descending from T - 1. The last is one step above 0."""
        return np.linspace(self.last_time, self.last_time / self.num_times, self.num_times).round()


def cascade(subject: Subject) -> Arrays:
    """Computes the critical alpha_bar, t and continuous time s of every eigenvalue of the covariance, for each rule."""
    schedule = subject.denoiser.schedule
    eigenvalues = np.asarray(subject.gaussian.eigenvalues)
    arrays = {"eigenvalues": eigenvalues}
    for rule in RULES:
        alpha_bars = critical_alpha_bars(eigenvalues, rule)
        arrays[f"alpha_bar_{rule}"] = alpha_bars
        arrays[f"t_{rule}"] = times_of(alpha_bars, schedule)
        arrays[f"s_{rule}"] = continuous_times(alpha_bars, schedule)
    return arrays


def growth(subject: Subject) -> Arrays:
    """Computes growth rates of displacements over time, and the times at which the rates become positive.

    The growth rates are the leading eigenvalues of the drift's Jacobian, at the central fixed point and at noised
    images. The result also has the critical times of the leading eigenvalues of the data's covariance, for comparison.
    """
    denoiser = subject.denoiser
    times = subject.times()
    options = {"num_eigenvalues": subject.num_eigenvalues, "rng": subject.rng}
    followed = stability.follow(denoiser, subject.mean, times, **options)
    typical = stability.typical_growth(denoiser, subject.x0[:PROBED], times, **options)
    settled = np.asarray(followed.residuals) < stability.SETTLED
    at_fixed_point = np.where(settled[:, None], followed.growth, np.nan)
    at_images = np.asarray(typical).mean(axis=1)
    leading = np.asarray(subject.gaussian.eigenvalues)[: subject.num_eigenvalues]
    return {
        "t": times,
        "residual": np.asarray(followed.residuals),
        "asymmetry": np.asarray(followed.asymmetry),
        "fixed_point": np.asarray(followed.points),
        "growth_fixed_point": at_fixed_point,
        "growth_images": np.asarray(typical),
        "eigenvalues": leading,
        **{f"t_{rule}": critical_times(leading, denoiser.schedule, rule) for rule in RULES},
        "t_fixed_point": stability.critical_times(times, at_fixed_point),
        "t_images": stability.critical_times(times, at_images),
    }


def agreement(subject: Subject) -> Arrays:
    """Computes, over time, the fraction of the network's eps that the Gaussian's eps does not explain."""
    times = subject.times()
    unexplained = unexplained_eps(subject.denoiser, (subject.gaussian,), subject.x0, times=times, rng=subject.rng)
    return {"t": times, "unexplained": np.asarray(unexplained)[0]}


def splits(subject: Subject) -> Arrays:
    """Computes, over time, how well mixtures describe the noised data, and the times at which components separate.

    Without mixtures the result is empty. Critical times follow the rule `critical.speciation`.

    Returns:
      t: descending.
      components: values of sampling.components. The first is "1", the single Gaussian.
      unexplained: [components, t], the fraction of the network's eps that the mixture's eps does not explain.
      revealed: [components, t], the mutual information of x_t and the component of its image, as a fraction of the
        entropy of the component; 0 for the single Gaussian.
      t_between: [components], the critical time of the largest eigenvalue of the covariance of the components' means.
      t_within_NAME: one array [K] for each mixture NAME: the critical time of each component's largest variance.
    """
    if not subject.mixtures:
        return {}
    schedule = subject.denoiser.schedule
    mixtures = {ONE: subject.gaussian.mixture(), **subject.mixtures}
    noised = {"x0": subject.x0, "times": subject.times(), "rng": subject.rng}
    between = [largest_variance_of_means(mixture) for mixture in mixtures.values()]
    within = {f"t_within_{name}": np.max(mixture.variances, axis=1) for name, mixture in mixtures.items()}
    return {
        "t": subject.times(),
        "components": np.array(list(mixtures)),
        "unexplained": np.asarray(unexplained_eps(subject.denoiser, tuple(mixtures.values()), **noised)),
        "revealed": np.stack([revealed_components(schedule, mixture, **noised) for mixture in mixtures.values()]),
        "t_between": critical_times(between, schedule, SPLIT_RULE),
        **{name: critical_times(variances, schedule, SPLIT_RULE) for name, variances in within.items()},
    }


def generation(subject: Subject) -> Arrays:
    """Generates trajectories of DDIM from pure noise, and computes the potential between pairs of them.

    Returns:
      t: the times of a trajectory, descending to -1.
      pixels: the pixels with the largest variance over the generated images.
      normalised: [times, trajectories, pixels], the pixels minus their mean, divided by their standard deviation.
      t_shown: the times of the remaining arrays.
      states: [t_shown, trajectories, height, width, channels], x_t.
      angle: ANGLES, positions on the path between the two trajectories of a pair (see `_along_paths`).
      potential: [t_shown, pairs, angles], the line integral of minus the drift, for beta = 1. It is 0 at the first
        trajectory of the pair.
      strips: [t_shown, angles, height, width, channels], the network's predictions of x_0 along the first pair's path.
    """
    timesteps = time_grid(subject.n_steps, subject.last_time)
    noise = jax.random.normal(subject.rng, (2 * PAIRS, *subject.gaussian.image_shape))
    states = np.asarray(_ddim_states(subject.denoiser, noise, timesteps))
    times = np.append(timesteps, -1)
    pixels, normalised = _pixel_paths(states)

    shown = np.linspace(0, subject.n_steps, LEVELS).round().astype(int)
    t_shown = np.maximum(times[shown], 0)  # the last state is clean data, where there is no score
    slopes = []
    predictions = []
    for t, x in zip(t_shown, states[shown], strict=True):
        slope, x0 = _along_paths(subject.denoiser, subject.mean, t=t, states=x)
        slopes.append(slope)
        predictions.append(x0[0])
    return {
        "t": times,
        "pixels": pixels,
        "normalised": normalised,
        "t_shown": t_shown,
        "states": states[shown],
        "angle": ANGLES,
        "potential": _integrated(np.asarray(slopes)),
        "strips": np.asarray(datasets.to_uint8(jnp.stack(predictions), subject.centered)),
    }


_ddim = jax.jit(functools.partial(sampling.sample, "ddim"), static_argnames="callback")


def _ddim_states(
    denoiser: Denoiser, x: Images, timesteps: Timesteps
) -> Float[Array, "steps+1 batch height width channels"]:
    """Returns x at each of the timesteps and at t = -1."""
    x0, states = _ddim(denoiser, x, timesteps, callback=_current_x)
    return jnp.concatenate([states, x0[None]])


def _current_x(evaluation: Evaluation) -> Images:
    return evaluation.x


def _pixel_paths(
    states: Float[np.ndarray, "times batch height width channels"],
) -> tuple[Int[np.ndarray, "pixels"], Float[np.ndarray, "times batch pixels"]]:
    """Returns the PIXELS pixels with the largest final variance, and their values standardised over the batch."""
    flat = states.reshape(*states.shape[:2], -1)
    pixels = np.argsort(flat[-1].std(axis=0))[-PIXELS:]
    values = flat[:, :, pixels]
    return pixels, (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)


def _integrated(slopes: Float[np.ndarray, "*batch angles"]) -> Float[np.ndarray, "*batch angles"]:
    """Integrates slopes over ANGLES by the trapezoidal rule. The integral is 0 at angle 0."""
    steps = (slopes[..., 1:] + slopes[..., :-1]) / 2 * np.diff(ANGLES)
    integral = np.concatenate([np.zeros_like(slopes[..., :1]), steps.cumsum(axis=-1)], axis=-1)
    return integral - integral[..., [np.abs(ANGLES).argmin()]]


@jax.jit
def _along_paths(
    denoiser: Denoiser, mean: Image, t: Int[Array, ""], states: Images
) -> tuple[Float[Array, "pairs angles"], Float[Array, "pairs angles height width channels"]]:
    """Returns (angular derivative of the potential, predicted x_0) on the paths between pairs of states at time t.

    State i is paired with state i + pairs. With y = x - sqrt(ab) mean, the path is cos(a) y1 + sin(a) y2. Both ends are
    scaled to the same norm, so that the mean and the variance of x do not change along the path.
    """
    schedule = denoiser.schedule
    ends = (states - schedule.signal(t) * mean).reshape(2, -1, 1, *mean.shape)
    squares = (ends**2).sum(axis=(2, 3, 4, 5), keepdims=True)
    ends *= jnp.sqrt(squares.mean(axis=0) / squares)
    cos, sin = (np.asarray(function(ANGLES), mean.dtype).reshape(-1, 1, 1, 1) for function in (np.cos, np.sin))
    y = cos * ends[0] + sin * ends[1]
    tangent = cos * ends[1] - sin * ends[0]
    x = (schedule.signal(t) * mean + y).reshape(-1, *mean.shape)
    eps = denoiser.eps(x, t)
    slopes = ((eps.reshape(y.shape) / schedule.sigma(t) - y / 2) * tangent).sum(axis=(2, 3, 4))
    return slopes, schedule.predict_x0(x, t, eps).reshape(y.shape)


def same_noise(subject: Subject, count: int = 2 * PAIRS) -> Arrays:
    """Computes the distance between images from late starts and images of full DDIM from the same noise.

    Full DDIM starts from pure noise and takes one step for every time of the schedule.

    Returns:
      t_start: the late starts.
      n_steps: LATE_STEPS.
      distance: [t_start, n_steps], the mean square over pixels and `count` images, in the network's range.
      to_other_noise: the same distance between images of full DDIM from different noise.
    """
    starts = np.array([round(share * (subject.last_time + 1)) for share in LATE_SHARES])
    noise = jax.random.normal(subject.rng, (count, *subject.gaussian.image_shape))

    def images(x: Images, t_start: int, n_steps: int) -> Images:
        return _ddim(subject.denoiser, x, time_grid(n_steps, t_start))

    full = images(noise, subject.last_time, subject.last_time + 1)
    distance = np.zeros((len(starts), len(LATE_STEPS)))
    for i, t in enumerate(starts.tolist()):
        x = subject.gaussian.sample(noise, subject.denoiser.schedule.alpha_bar(t))
        for j, n_steps in enumerate(LATE_STEPS):
            late = images(x, t, min(n_steps, t + 1) if n_steps else t + 1)
            distance[i, j] = jnp.mean((late - full) ** 2)
    to_other = np.asarray(jnp.mean((full - jnp.roll(full, 1, axis=0)) ** 2))
    return {"t_start": starts, "n_steps": np.array(LATE_STEPS), "distance": distance, "to_other_noise": to_other}


def correlation(subject: Subject) -> Arrays:
    """Computes, along noising trajectories, the correlation over pixels of x_t with x_0 and with the last x_t.

    Returns:
      t: the times, ascending from -1.
      with_start: [t, images], the correlation with x_0.
      with_end: [t, images], the correlation with the last x_t.
    """
    times = subject.times()[::-1]
    states = np.asarray(_noising(subject.denoiser.schedule, subject.x0, times, rng=subject.rng))
    centred = states.reshape(len(states), len(subject.x0), -1)
    centred = centred - centred.mean(axis=2, keepdims=True)
    units = centred / np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), 1e-12)
    return {
        "t": np.append(-1, times),
        "with_start": (units * units[0]).sum(axis=2),
        "with_end": (units * units[-1]).sum(axis=2),
    }


@jax.jit
def _noising(
    schedule: NoiseSchedule, x0: Images, times: Real[Array, "times"], rng: RandomKey
) -> Float[Array, "times+1 batch height width channels"]:
    """Returns one noising trajectory per image: x0, and the states at ascending times."""

    def step(x, row):
        i, s, t = row
        kept = schedule.signal(t) / schedule.signal(s)
        x = kept * x + jnp.sqrt(1 - kept**2) * jax.random.normal(jax.random.fold_in(rng, i), x.shape, x.dtype)
        return x, x

    times = jnp.append(jnp.asarray(-1.0), jnp.asarray(times))
    _, states = jax.lax.scan(step, x0, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    return jnp.concatenate([x0[None], states])


def u_turn(subject: Subject) -> Arrays:
    """Computes the fraction of images that keep their class when they are noised to t and denoised again by DDIM.

    Without a classifier the result is empty.

    Returns:
      t: the times, ascending.
      stayed: the fraction at each t.
      num_images: the number of images.
      chance: the probability that two random images have the same class.
    """
    if subject.predict is None:
        return {}
    before = np.asarray(subject.predict(datasets.to_uint8(subject.x0, subject.centered)))
    times = subject.times()[::-1].astype(int)
    times = times[times > UTURN_STEPS]
    stayed = []
    for i, t in enumerate(times.tolist()):
        noise = jax.random.normal(jax.random.fold_in(subject.rng, i), subject.x0.shape)
        x_t = subject.denoiser.schedule.diffuse(subject.x0, t, noise)
        x0 = _ddim(subject.denoiser, x_t, time_grid(UTURN_STEPS, t))
        after = np.asarray(subject.predict(datasets.to_uint8(x0, subject.centered)))
        stayed.append(after == before)
    _, counts = np.unique(before, return_counts=True)
    chance = np.asarray(np.sum((counts / counts.sum()) ** 2))
    return {"t": times, "stayed": np.mean(stayed, axis=1), "num_images": np.array(len(before)), "chance": chance}
