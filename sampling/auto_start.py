"""The automatic start of a late start (sampling.t_start=auto) and the automatic time grid (sampling.spacing=auto).

The sampler generates images from several candidate starts, with the same noise and with the network under evaluation.
The chosen start is the one whose images are nearest to the data. The distance compares means and standard deviations
along the principal axes of the data: of the features of the data set's classifier, or of the pixels if there is no
classifier. Standard deviations need fewer samples than covariances. Axes with large sampling error have small weight.
The noise differs from the noise of the evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32
from ml_collections import ConfigDict
from tqdm import tqdm

import sampling
from core import parallel
from core.arithmetic import ceil_div
from core.diffusion import Denoiser
from core.shapes import Images, ImageShape
from sampling.auto_grid import FINE_STEPS, cheapest_grid, fine_times, least_start, walk
from sampling.generate import generate, labels_of, of_labels, prior
from sampling.late_start import DataGaussian, DataMixture
from sampling.time_grid import AUTO_SPACING, AUTO_START, time_grid

SHARE = 0.15  # the network calls of the search, as a fraction of the calls of the evaluation
CHUNK_LIMITS = (8, 512)  # images in a chunk; in a small evaluation, the minimum makes the fraction larger than SHARE
COARSE = np.linspace(0.15, 0.85, 8)  # the first candidates, one chunk each, as fractions of T - 1
FINE = np.arange(-3, 4) * 0.025  # the second candidates, two chunks each, relative to the best first candidate
CHUNKS = len(COARSE) + 2 * len(FINE) - 1  # total number of chunks; the best first candidate's chunk is used again
NOISE_FLOOR = 0.003  # see `_distance`; chosen for DDPM and DDIM on digits with 300 to 7,500 images
GRID_IMAGES = 32  # number of images whose trajectories determine an automatic grid


class Axes(NamedTuple):
    """Mean and standard deviation of the data along each eigenvector of their covariance."""

    means: Float[np.ndarray, "axes"]
    spreads: Float[np.ndarray, "axes"]  # standard deviations


Extract = Callable[[Images], Float[np.ndarray, "batch axes"]]
"""Maps x_0, which is on the devices, to coordinates along the axes of the data."""


class Candidate(NamedTuple):
    """One start that the search has tried."""

    t_start: int
    images: int
    distance: float


class AutoStart(NamedTuple):
    """The chosen grid, which begins at the chosen start, and how it was found."""

    timesteps: Int32[np.ndarray, "steps"]
    candidates: list[Candidate]  # empty if the config gives the start
    network_calls: int
    share: float  # network_calls divided by the network calls of the evaluation

    def facts(self) -> dict[str, Any]:
        """Returns the entry "auto_start" of result.json."""
        return {
            "t_start": int(self.timesteps[0]),
            "timesteps": self.timesteps.tolist(),
            "curve": [candidate._asdict() for candidate in self.candidates],
            "network_calls": self.network_calls,
            "share_of_evaluation": round(self.share, 4),
        }


def chooses_start(config: ConfigDict) -> bool:
    """Whether config.sampling has an automatic start."""
    return config.sampling.gls and config.sampling.t_start == AUTO_START


def chooses_grid(config: ConfigDict) -> bool:
    """Whether config.sampling has an automatic grid."""
    return config.sampling.spacing == AUTO_SPACING


def needs_gaussian(config: ConfigDict) -> bool:
    """Whether sampling needs the Gaussian of the data: for a late start or an automatic grid."""
    return config.sampling.gls or chooses_grid(config)


def choose(
    config: ConfigDict,
    denoiser: Denoiser,
    *,
    gaussian: DataGaussian,
    mixture: DataMixture | None,
    image_shape: ImageShape,
    axes: tuple[Extract, Axes] | None,
) -> AutoStart:
    """Chooses the time grid for a config whose start, spacing or both are automatic.

    The result is a deterministic function of the weights and the config.

    gaussian: the Gaussian of the data, for an automatic grid.
    mixture: the distribution of late starts.
    axes: the axes of the data, for an automatic start.
    """
    settings = config.sampling
    num = config.eval.num_samples
    nfe = sampling.nfe(settings.sampler, settings.n_steps)
    size = _chunk_size(config, nfe)
    first_chunk = ceil_div(num, size)  # the evaluation uses the noise of all earlier chunks
    times = fine_times(denoiser.schedule.num_timesteps)
    calls = 0
    errors = None
    if chooses_grid(config):
        measured = min(size, parallel.round_up(GRID_IMAGES))
        noise, _ = prior(config.seed, first=first_chunk * size, batch_size=measured, image_shape=image_shape)
        labels = labels_of(config, first_chunk * size, measured)
        num_measured = min(size, GRID_IMAGES)
        _, errors = walk(
            of_labels(config, parallel.replicate(denoiser), labels),
            gaussian,
            noise,
            times=times,
            num_measured=num_measured,
        )
        errors = np.asarray(parallel.replicate(errors), np.float64)
        calls += len(times) * measured

    def grid(t_start: int) -> np.ndarray:
        if errors is not None:
            return cheapest_grid(errors, times, n_steps=settings.n_steps, t_start=t_start)
        return time_grid(settings.n_steps, t_start, spacing=settings.spacing, schedule=denoiser.schedule)

    last = denoiser.schedule.num_timesteps - 1
    candidates = []
    start = settings.t_start if settings.gls else last
    if chooses_start(config):
        extract, data = axes

        def draw(t_start: int, k: int) -> np.ndarray:
            first = (first_chunk + k) * size
            shape = {"image_shape": image_shape, "num": first + size, "batch_size": size}
            [(x0, _)] = generate(config, denoiser, mixture, timesteps=grid(t_start), **shape, first=first)
            return extract(x0)

        least = settings.n_steps - 1 if errors is None else least_start(times, settings.n_steps)
        start, candidates, drawn = _search(draw, data, least=max(least, 1), last=last)
        calls += drawn * size * nfe
    return AutoStart(grid(start), candidates, network_calls=calls, share=calls / (num * nfe))


def _chunk_size(config: ConfigDict, nfe: int) -> int:
    """Returns the images per chunk, in CHUNK_LIMITS, with which the search costs SHARE of the evaluation's calls."""
    calls_per_image = 0
    if chooses_start(config):
        calls_per_image += CHUNKS * nfe
    if chooses_grid(config):
        calls_per_image += FINE_STEPS
    affordable = SHARE * config.eval.num_samples * nfe / calls_per_image
    return parallel.round_up(int(np.clip(affordable, *CHUNK_LIMITS)))


def _distance(images: Float[np.ndarray, "n axes"], data: Axes) -> float:
    """Returns a weighted sum, over the axes, of the squared Fréchet distances between images and data along each axis.

    Along an axis with variance v, the squared difference of the means of n images has a sampling error of v / n. An
    axis has half its weight if this error is NOISE_FLOOR times the mean of all variances, weighted by the variances.
    """
    variances = data.spreads**2
    sampling_error = variances / len(images)
    floor = NOISE_FLOOR * np.sum(variances**2) / np.sum(variances)
    mean_error = images.mean(axis=0) - data.means
    spread_error = images.std(axis=0, ddof=1) - data.spreads
    return float(np.sum(floor / (floor + sampling_error) * (mean_error**2 + spread_error**2)))


def _search(
    draw: Callable[[int, int], np.ndarray], data: Axes, least: int, last: int
) -> tuple[int, list[Candidate], int]:
    """Returns the best start from `least` to `last`, all candidates, and the number of chunks drawn.

    draw: called as draw(t_start, k); returns the coordinates of the images of chunk k, sampled from this start.
    """
    drawn: dict[tuple[int, int], np.ndarray] = {}
    candidates: list[Candidate] = []

    def best_of(starts: np.ndarray, chunks: int) -> int:
        tried = []
        for start in sorted({int(t) for t in np.clip(np.rint(starts), least, last)}):
            for k in range(chunks):
                if (start, k) not in drawn:
                    drawn[start, k] = draw(start, k)
                    progress.update()
            images = np.concatenate([drawn[start, k] for k in range(chunks)])
            tried.append(Candidate(start, len(images), _distance(images, data)))
        candidates.extend(tried)
        return min(tried, key=lambda candidate: (candidate.distance, candidate.t_start)).t_start

    with tqdm(total=CHUNKS, desc="choosing the start") as progress:
        best = best_of(last * COARSE, chunks=1)
        best = best_of(best + last * FINE, chunks=2)
    return best, candidates, len(drawn)
