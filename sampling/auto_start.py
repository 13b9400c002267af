"""The start of a late start, and the grid below it, found by a small trial with the network that is to be evaluated.

The sampler makes images of the same noise from a few starts. That start is chosen whose images come nearest to the data
in mean and in spread along each of the data's axes, in the features of the data set's own classifier or, where there is
none, in pixels. Spreads settle sooner than covariances, or distances of them; and an axis counts the less, the more
chance there is in so few images along it. No noise of the trial is the evaluation's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import sampling
from core import parallel
from core.diffusion import EpsFn, NoiseSchedule
from sampling.auto_grid import FINE_STEPS, cheapest_grid, fine_times, least_start, walk
from sampling.generate import generate, prior
from sampling.late_start import DataGaussian
from sampling.time_grid import AUTO_SPACING, AUTO_START, time_grid

SHARE = 0.15  # of the evaluation's network calls
CHUNK = 8, 512  # images, at least and at most; an evaluation too small for the least pays more than SHARE
COARSE = np.linspace(0.15, 0.85, 8)  # starts tried first, on one chunk of images, as shares of the schedule
FINE = np.arange(-3, 4) * 0.025  # those around the best of them, tried next, on two
RUNS = len(COARSE) + 2 * len(FINE) - 1  # chunks drawn in all: the best of the first is not drawn again
DISCERNED = 0.003  # see `_distance`; a compromise for DDPM and DDIM on digits, trials of 300 to 7,500 images
MEASURED = 32  # images whose trajectories say where a grid's times go


class Choice(NamedTuple):
    timesteps: np.ndarray  # int32 [n]
    curve: list[tuple[int, int, float]]  # start, images, distance; empty where the start was given
    network_calls: int
    share: float  # network_calls over the evaluation's

    def facts(self) -> dict[str, Any]:
        """For result.json."""
        names = ("t_start", "images", "distance")
        return {
            "t_start": int(self.timesteps[0]),
            "timesteps": self.timesteps.tolist(),
            "curve": [dict(zip(names, point, strict=True)) for point in self.curve],
            "network_calls": self.network_calls,
            "share_of_evaluation": round(self.share, 4),
        }


def chooses_start(config: ConfigDict) -> bool:
    return config.sampling.gls and config.sampling.t_start == AUTO_START


def chooses_grid(config: ConfigDict) -> bool:
    return config.sampling.spacing == AUTO_SPACING


def needs_gaussian(config: ConfigDict) -> bool:
    return config.sampling.gls or chooses_grid(config)


def choose(
    config: ConfigDict,
    eps_fn: EpsFn,
    schedule: NoiseSchedule,
    gaussian: DataGaussian,
    image_shape: tuple[int, int, int],
    axes: "tuple[Extract, Axes] | None",
) -> Choice:
    """The time grid of config.sampling where its start, its spacing or both are to be chosen.

    gaussian: the data's, late start or not. Deterministic: a function of the weights and the config.
    """
    settings, num = config.sampling, config.eval.num_samples
    open_start, open_grid = chooses_start(config), chooses_grid(config)
    times, nfe = fine_times(schedule.num_timesteps), sampling.nfe(settings.sampler, settings.n_steps)
    runs, walks = RUNS * open_start, FINE_STEPS * open_grid
    size = parallel.round_up(int(np.clip(SHARE * num * nfe / (runs * nfe + walks), *CHUNK)))
    beyond = -(-num // size)  # chunks of noise that the evaluation uses
    errors, calls = None, 0
    if open_grid:
        walked = min(size, parallel.round_up(MEASURED))
        noise, _ = prior(config, beyond * size, walked, image_shape)
        _, errors = walk(eps_fn, parallel.replicate(schedule), gaussian, noise, times, min(size, MEASURED))
        errors, calls = np.asarray(parallel.replicate(errors), np.float64), len(times) * walked

    def grid(t_start: int) -> np.ndarray:
        if open_grid:
            return cheapest_grid(errors, times, settings.n_steps, t_start)
        return time_grid(settings.n_steps, t_start, settings.spacing, schedule)

    last, curve = schedule.num_timesteps - 1, []
    start = settings.t_start if settings.gls else last
    if open_start:
        extract, data = axes

        def draw(t_start: int, k: int) -> np.ndarray:
            first = (beyond + k) * size
            [(x0, _)] = generate(
                config, eps_fn, schedule, gaussian, grid(t_start), image_shape, first + size, size, first
            )
            return extract(x0)

        least = least_start(times, settings.n_steps) if open_grid else settings.n_steps - 1
        start, curve, drawn = _search(draw, data, max(least, 1), last)
        calls += drawn * size * nfe
    return Choice(grid(start), curve, calls, calls / (num * nfe))


Extract = Callable[[jax.Array], np.ndarray]
"""x_0 on the devices to features along the axes, [B, k] in float64."""


class Axes(NamedTuple):
    """The data along their axes, the eigenvectors of their covariance: means and standard deviations, each [k]."""

    means: np.ndarray
    spreads: np.ndarray


def _distance(images: np.ndarray, data: Axes) -> float:
    """The Frechet distance from the data of images [N, k], axis by axis, each weighed by what can be told along it.

    Chance adds an axis's variance over N to the square of its mean. Where that is the share DISCERNED of the variance
    along a leading axis (their own mean, weighed by themselves), the axis has half its weight.
    """
    variances = data.spreads**2
    chance, discerned = variances / len(images), DISCERNED * np.sum(variances**2) / np.sum(variances)
    means, spreads = images.mean(axis=0) - data.means, images.std(axis=0, ddof=1) - data.spreads
    return float(np.sum(discerned / (discerned + chance) * (means**2 + spreads**2)))


def _search(
    draw: Callable[[int, int], np.ndarray], data: Axes, least: int, last: int
) -> tuple[int, list[tuple[int, int, float]], int]:
    """The best start from least to last, the distance of every start tried, and how many chunks were drawn.

    draw(t_start, k) gives the features of chunk k from a start.
    """
    drawn: dict[tuple[int, int], np.ndarray] = {}
    curve: list[tuple[int, int, float]] = []
    progress = tqdm(total=RUNS, desc="choosing the start")

    def nearest(starts: np.ndarray, chunks: int) -> int:
        tried = []
        for start in sorted({int(t) for t in np.clip(np.rint(starts), least, last)}):
            for k in range(chunks):
                if (start, k) not in drawn:
                    drawn[start, k] = draw(start, k)
                    progress.update()
            images = np.concatenate([drawn[start, k] for k in range(chunks)])
            tried.append((_distance(images, data), start))
            curve.append((start, len(images), tried[-1][0]))
        return min(tried)[1]

    with progress:
        best = nearest(last * COARSE, chunks=1)
        best = nearest(best + last * FINE, chunks=2)
    return best, curve, len(drawn)
