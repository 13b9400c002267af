"""What is measured on one network, as named arrays; `figures` draws them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import datasets
import sampling
from core.diffusion import EpsFn, NoiseSchedule
from sampling.common import intervals, transfer
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid
from symmetry import stability
from symmetry.agreement import gaussian_agreement
from symmetry.critical import RULES, continuous_times, critical_alpha_bars, critical_times, times_of

ANGLES = np.linspace(-0.2 * np.pi, 0.7 * np.pi, 46)  # 0 is one image, pi / 2 the other
PAIRS = 16
LEVELS = 7  # how many times the potential and the strips are shown at
PROBED = 8  # images at which the Jacobian is taken
PIXELS = 3
UTURN_STEPS = 20
LATE_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the schedule's times, where late starts are compared with full ones
LATE_STEPS = (10, 50, 0)  # of a late start, or as many as there are times below it; 0 for all of these

Arrays = dict[str, np.ndarray]


class Subject(NamedTuple):
    """The network under study and its data."""

    eps_fn: EpsFn
    schedule: NoiseSchedule
    gaussian: DataGaussian
    x0: jax.Array  # images [N, H, W, C] of the training split, in the network's range
    centered: bool  # whether that range is [-1, 1]
    predict: Callable[[jax.Array], jax.Array] | None  # classes [B] of uint8 images, where there is a classifier
    rng: jax.Array
    num_times: int
    num_eigenvalues: int
    n_steps: int  # of the generated trajectories

    @property
    def mean(self) -> jax.Array:
        return jnp.asarray(self.gaussian.mean, jnp.float32).reshape(self.gaussian.image_shape)

    def times(self) -> np.ndarray:
        """[num_times], descending from T - 1 in equal steps to one of them above 0."""
        last = self.schedule.num_timesteps - 1
        return np.linspace(last, last / self.num_times, self.num_times).round()


def cascade(subject: Subject) -> Arrays:
    """For every direction of the data's covariance and by each rule: critical alpha_bar, t and continuous s."""
    eigenvalues, arrays = np.asarray(subject.gaussian.eigenvalues), {}
    for rule in RULES:
        alpha_bars = critical_alpha_bars(eigenvalues, rule)
        arrays[f"alpha_bar_{rule}"] = alpha_bars
        arrays[f"t_{rule}"] = times_of(alpha_bars, subject.schedule)
        arrays[f"s_{rule}"] = continuous_times(alpha_bars, subject.schedule)
    return {"eigenvalues": eigenvalues} | arrays


def growth(subject: Subject) -> Arrays:
    """Leading eigenvalues of the drift's Jacobian at the fixed point and at noised images, their sign changes, and the
    times that the spectrum predicts for the same directions.
    """
    times, k = subject.times(), subject.num_eigenvalues
    followed = stability.follow(subject.eps_fn, subject.schedule, subject.mean, times, k, subject.rng)
    typical = stability.typical_growth(subject.eps_fn, subject.schedule, subject.x0[:PROBED], times, k, subject.rng)
    settled = np.asarray(followed.residuals) < stability.SETTLED
    at_fixed_point = np.where(settled[:, None], followed.growth, np.nan)
    at_images = np.asarray(typical).mean(axis=1)
    leading = np.asarray(subject.gaussian.eigenvalues)[:k]
    return {
        "t": times,
        "residual": np.asarray(followed.residuals),
        "asymmetry": np.asarray(followed.asymmetry),
        "fixed_point": np.asarray(followed.points),
        "growth_fixed_point": at_fixed_point,
        "growth_images": np.asarray(typical),
        "eigenvalues": leading,
        **{f"t_{rule}": critical_times(leading, subject.schedule, rule) for rule in RULES},
        "t_fixed_point": stability.critical_times(times, at_fixed_point),
        "t_images": stability.critical_times(times, at_images),
    }


def agreement(subject: Subject) -> Arrays:
    """How much of the network's eps the Gaussian's leaves unexplained."""
    times = subject.times()
    measure = gaussian_agreement(subject.eps_fn, subject.gaussian, subject.schedule, subject.x0, times, subject.rng)
    return {"t": times, "unexplained": np.asarray(measure)}


def generation(subject: Subject) -> Arrays:
    """DDIM from pure noise: some states x_t, pixels of all as multiples of their deviation, potentials between pairs.

    The potential is per unit of beta, along y(a) = cos(a) y1 + sin(a) y2 between two trajectories at one time, with
    y = x - sqrt(ab) mean, both scaled to one norm, so that the path keeps mean and variance: the line integral of
    minus the drift, zero at y1. `strips` is what the network predicts x_0 to be along the first pair's path.
    """
    timesteps = time_grid(subject.n_steps, subject.schedule.num_timesteps - 1)
    noise = jax.random.normal(subject.rng, (2 * PAIRS, *subject.gaussian.image_shape))
    states = np.asarray(_ddim_states(subject.eps_fn, subject.schedule, noise, timesteps))
    times = np.append(timesteps, -1)
    flat = states.reshape(len(states), len(noise), -1)
    pixels = np.argsort(flat[-1].std(axis=0))[-PIXELS:]
    values = flat[:, :, pixels]
    normalised = (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)

    shown = np.linspace(0, subject.n_steps, LEVELS).round().astype(int)
    t_shown = np.maximum(times[shown], 0)  # the last state is clean, where there is no score
    along = functools.partial(_along_paths, subject.eps_fn, subject.schedule, subject.mean)
    slopes, predictions = zip(*[along(t, x) for t, x in zip(t_shown, states[shown], strict=True)], strict=True)
    slopes = np.asarray(slopes)
    steps = (slopes[..., 1:] + slopes[..., :-1]) / 2 * np.diff(ANGLES)
    u = np.concatenate([np.zeros_like(slopes[..., :1]), steps.cumsum(axis=-1)], axis=-1)
    u -= u[..., [np.abs(ANGLES).argmin()]]
    strips = np.asarray(datasets.to_uint8(jnp.stack(predictions)[:, 0], subject.centered))
    return {
        "t": times,
        "pixels": pixels,
        "normalised": normalised,
        "t_shown": t_shown,
        "states": states[shown],
        "angle": ANGLES,
        "potential": u,
        "strips": strips,
    }


@jax.jit
def _ddim_states(eps_fn, schedule, x, timesteps):
    """[n + 1, B, H, W, C], x at each of the timesteps [n] and at -1."""

    def step(x, t_s):
        t, s = t_s
        a, b = transfer(schedule, t, s)
        return a * x + b * eps_fn(x, jnp.full(len(x), t, x.dtype)), x

    x, states = jax.lax.scan(step, x, intervals(timesteps, x.dtype))
    return jnp.concatenate([states, x[None]])


@jax.jit
def _along_paths(eps_fn, schedule, mean, t, states):
    """(du / da [P, A], predicted x_0 [P, A, H, W, C]) for states [2 P, H, W, C] at t."""
    pairs = (states - schedule.signal(t) * mean).reshape(2, -1, 1, *mean.shape)
    squares = (pairs**2).sum(axis=(2, 3, 4, 5), keepdims=True)
    pairs *= jnp.sqrt(squares.mean(axis=0) / squares)
    cos, sin = (np.asarray(f(ANGLES), mean.dtype).reshape(-1, 1, 1, 1) for f in (np.cos, np.sin))
    y, tangent = cos * pairs[0] + sin * pairs[1], cos * pairs[1] - sin * pairs[0]
    x = (schedule.signal(t) * mean + y).reshape(-1, *mean.shape)
    eps = eps_fn(x, jnp.full(len(x), t, x.dtype))
    slopes = ((eps.reshape(y.shape) / schedule.sigma(t) - y / 2) * tangent).sum(axis=(2, 3, 4))
    return slopes, schedule.predict_x0(x, t, eps).reshape(y.shape)


def same_noise(subject: Subject, count: int = 2 * PAIRS) -> Arrays:
    """How far a late start's images lie from those of the full DDIM of the same noise, which asks at every time.

    `distance` [starts, LATE_STEPS] is the mean square over pixels and `count` noises, in the network's range;
    `to_other_noise` is the same between full images of different noises, and what late images have nothing in common
    with would reach.
    """
    last = subject.schedule.num_timesteps - 1
    starts = np.array([round(share * (last + 1)) for share in LATE_SHARES])
    noise = jax.random.normal(subject.rng, (count, *subject.gaussian.image_shape))

    def images(x, t_start, n_steps):
        timesteps = np.full(last + 2, -1)  # of one length, so that all are compiled once
        timesteps[:n_steps] = time_grid(n_steps, t_start)
        return _ddim(subject.eps_fn, subject.schedule, x, timesteps, n_steps)

    full = images(noise, last, last + 1)
    distance = np.zeros((len(starts), len(LATE_STEPS)))
    for i, t in enumerate(starts.tolist()):
        x = subject.gaussian.sample(noise, subject.schedule.alpha_bar(t))
        for j, n_steps in enumerate(LATE_STEPS):
            distance[i, j] = jnp.mean((images(x, t, min(n_steps or t + 1, t + 1)) - full) ** 2)
    to_other = np.asarray(jnp.mean((full - jnp.roll(full, 1, axis=0)) ** 2))
    return {"t_start": starts, "n_steps": np.array(LATE_STEPS), "distance": distance, "to_other_noise": to_other}


@jax.jit
def _ddim(eps_fn, schedule, x, timesteps, n_steps):
    """x_0 of the first n_steps, which may be traced, of timesteps; -1 must follow them."""

    def step(i, x):
        a, b = transfer(schedule, timesteps[i], timesteps[i + 1])
        return a * x + b * eps_fn(x, jnp.full(len(x), timesteps[i], x.dtype))

    return jax.lax.fori_loop(0, n_steps, step, x)


def correlation(subject: Subject) -> Arrays:
    """Noising, step by step: the correlation over pixels of x_t with the image x_0 and with its end x_T."""
    times = subject.times()[::-1]
    states = np.asarray(_noising(subject.schedule, subject.x0, times, subject.rng))
    centred = states.reshape(len(states), len(subject.x0), -1)
    centred = centred - centred.mean(axis=2, keepdims=True)
    units = centred / np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), 1e-12)
    with_start, with_end = ((units * units[i]).sum(axis=2) for i in (0, -1))
    return {"t": np.append(-1, times), "with_start": with_start, "with_end": with_end}


@jax.jit
def _noising(schedule, x0, times, rng):
    """[n + 1, B, H, W, C], one noised trajectory per image: x0, and its states at ascending times [n]."""

    def step(x, i_t_s):
        i, s, t = i_t_s
        kept = schedule.signal(t) / schedule.signal(s)
        x = kept * x + jnp.sqrt(1 - kept**2) * jax.random.normal(jax.random.fold_in(rng, i), x.shape, x.dtype)
        return x, x

    times = jnp.append(jnp.asarray(-1.0), jnp.asarray(times))
    _, states = jax.lax.scan(step, x0, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    return jnp.concatenate([x0[None], states])


def u_turn(subject: Subject) -> Arrays:
    """The share of images whose class survives being noised to t and denoised again (DDIM), against t."""
    if subject.predict is None:
        return {}
    before = subject.predict(datasets.to_uint8(subject.x0, subject.centered))
    times = subject.times()[::-1].astype(int)
    times = times[times > UTURN_STEPS]
    stayed = []
    for i, t in enumerate(times):
        noise = jax.random.normal(jax.random.fold_in(subject.rng, i), subject.x0.shape)
        x_t = subject.schedule.diffuse(subject.x0, t, noise)
        x0 = _denoise(subject.eps_fn, subject.schedule, x_t, time_grid(UTURN_STEPS, int(t)))
        stayed.append(np.asarray(subject.predict(datasets.to_uint8(x0, subject.centered)) == before))
    _, counts = np.unique(np.asarray(before), return_counts=True)
    chance = np.sum((counts / counts.sum()) ** 2)
    return {"t": times, "stayed": np.mean(stayed, axis=1), "num_images": np.array(len(before)), "chance": chance}


_denoise = jax.jit(functools.partial(sampling.sample, "ddim"))
