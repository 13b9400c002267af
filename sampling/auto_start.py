"""The automatic start of a late start (sampling.t_start=auto) and the automatic time grid (sampling.spacing=auto).

The search compares images from each candidate start with reference images from the same noise. The images from a
candidate are drawn by the sampler under evaluation, with its number of steps. The reference images are drawn by
REFERENCE, with REFERENCE_STEPS steps from an early start. For a given noise, the late starts at all times lie on one
trajectory of the Gaussian's probability flow. So the two sets of images are equal if neither the start nor the sampler
has an error, and most of the random error due to the choice of the noise cancels. The chosen start has the smallest
`distance` between the features of the two sets. The same number of images is drawn from every candidate, and the choice
is among all candidates that were tried.

The images of a stochastic sampler are not determined by the noise of the start. So its start is chosen among a few
times around the automatic start of DDIM, by the distance between the features of its images and the features of the
data.

The search uses other noise than the evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32
from ml_collections import ConfigDict
from tqdm import tqdm

import sampling
from core import parallel
from core.diffusion import Denoiser
from core.errors import UserError
from core.shapes import Images, ImageShape
from sampling.auto_grid import FINE_STEPS, cheapest_grid, fine_times, least_start, walk
from sampling.gaussian_grid import gaussian_grid
from sampling.generate import draw, labels_of, of_labels, prior
from sampling.late_start import DataGaussian, DataMixture
from sampling.time_grid import AUTO_SPACING, AUTO_START, GAUSSIAN_SPACING, time_grid

SHARE = 0.15  # the network calls of the search, as a fraction of the calls of the evaluation
# Limits of the number of images from each start. With the lower limit, the search for a small evaluation costs more
# than SHARE.
IMAGES = (16, 512)
# The sampler of the reference images. On the Gaussian of digits, its 20 steps have an rms error of 0.0024 in x_0. The
# error of dpmpp_2m with equal steps in t is 0.068, because its last steps are long in log-SNR.
REFERENCE = "ipndm"
REFERENCE_SPACING = "quadratic"
REFERENCE_STEPS = 20
EARLY = 0.85  # the start of the reference images, as a fraction of T - 1
# The candidates, as fractions of T - 1. The first row has the times of the first round. The other rows have offsets
# from the best candidate so far.
ROUNDS = ((0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85), (-0.05, 0.05), (-0.025, 0.025))
CANDIDATES = sum(map(len, ROUNDS))
AROUND = (-0.05, 0.0, 0.05)  # the candidates of a stochastic sampler, relative to the start of DDIM
MORE = 4  # factor by which more images are compared with the data than with the reference images
GRID_IMAGES = 32  # number of images whose trajectories determine an automatic grid


class Axes(NamedTuple):
    """Mean and standard deviation of features along orthonormal axes."""

    means: Float[np.ndarray, "axes"]
    spreads: Float[np.ndarray, "axes"]  # standard deviations


Extract = Callable[[Images], Float[np.ndarray, "batch features"]]
"""Maps images x_0 on the devices to their features."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Compares images by their features. All runs of a sweep share one Comparison.

    Attributes:
      extract: the feature network.
      data: mean and covariance of the features of the data; stochastic samplers need them.
      references: features of the reference images drawn so far. The keys are the settings that determine these images.
    """

    extract: Extract
    data: tuple[Float[np.ndarray, "features"], Float[np.ndarray, "features features"]] | None
    references: dict[Hashable, Float[np.ndarray, "n features"]] = dataclasses.field(default_factory=dict)

    def to_data(self, features: Float[np.ndarray, "n features"]) -> float:
        """Returns the distance between images and the data, along the principal axes of the data."""
        axes, data = self._data_axes
        return distance(features @ axes, data)

    @functools.cached_property
    def _data_axes(self) -> tuple[Float[np.ndarray, "features axes"], Axes]:
        mean, covariance = self.data
        variances, axes = np.linalg.eigh(covariance)
        return axes, Axes(mean @ axes, np.sqrt(np.maximum(variances, 0)))


class Candidate(NamedTuple):
    """One start that the search has tried."""

    t_start: int
    images: int
    distance: float
    compared_with: str  # "reference" or "data"


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
    """Whether the grid of config.sampling is computed, for the network or for the data's Gaussian."""
    return measures_grid(config) or config.sampling.spacing == GAUSSIAN_SPACING


def measures_grid(config: ConfigDict) -> bool:
    """Whether the grid of config.sampling is computed from trajectories of the network."""
    return config.sampling.spacing == AUTO_SPACING


def needs_gaussian(config: ConfigDict) -> bool:
    """Whether sampling needs the Gaussian of the data: for a late start or an automatic grid."""
    return config.sampling.gls or chooses_grid(config)


def needs_data(config: ConfigDict) -> bool:
    """Whether the start is automatic and the sampler is stochastic, so that the features of the data are needed."""
    return chooses_start(config) and sampling.lookup(config.sampling.sampler).needs_rng


@dataclasses.dataclass(eq=False, kw_only=True)
class Trial:
    """Draws images of one network, compares them, and counts the network calls.

    Attributes:
      denoiser: the network.
      mixture: the distribution of late starts.
      comparison: compares the images.
      image_shape: (height, width, channels).
      first: the index of the first image of the search. The evaluation has the images before it.
      network_calls: the number of network calls so far.
    """

    denoiser: Denoiser
    mixture: DataMixture | None
    comparison: Comparison
    image_shape: ImageShape
    first: int
    network_calls: int = 0

    def features(
        self, config: ConfigDict, timesteps: Int32[np.ndarray, "steps"], images: slice
    ) -> Float[np.ndarray, "n features"] | None:
        """Returns the features of images of config.sampling, or None if an image is not finite.

        images: which images of the search to draw. The length is a multiple of the number of devices.
        """
        count = images.stop - images.start
        first = self.first + images.start
        shape = {"image_shape": self.image_shape, "first": first, "batch_size": count}
        x0 = draw(config, self.denoiser, self.mixture, timesteps=timesteps, **shape)
        self.network_calls += count * sampling.nfe(config.sampling.sampler, len(timesteps))
        return self.comparison.extract(x0) if jnp.isfinite(x0).all() else None

    def reference(self, config: ConfigDict, count: int) -> Float[np.ndarray, "{count} features"]:
        """Returns the features of the first `count` reference images, which are drawn once for all samplers and grids.

        Raises UserError if an image is not finite, or if all images have the same features.
        """
        settings = config.sampling
        key = (config.seed, self.first, settings.components, tuple(settings.classes), settings.clip_x0)
        config = config.copy_and_resolve_references()
        config.sampling.update(sampler=REFERENCE, n_steps=REFERENCE_STEPS, baseline="")
        start = round(EARLY * (self.denoiser.schedule.num_timesteps - 1))
        known = self.comparison.references.get(key)
        made = 0 if known is None else len(known)
        if made < count:
            timesteps = time_grid(REFERENCE_STEPS, start, spacing=REFERENCE_SPACING)
            more = self.features(config, timesteps, slice(made, count))
            if more is None:
                raise UserError(f"sampling.t_start=-1 (auto): images of {REFERENCE_STEPS} steps hold NaN or infinity")
            known = more if known is None else np.concatenate([known, more])
            self.comparison.references[key] = known
        if not known.std(axis=0).any():
            raise UserError("sampling.t_start=-1 (auto): the features of all images are equal; give a start")
        return known[:count]

    def to_reference(self, config: ConfigDict, timesteps: Int32[np.ndarray, "steps"], count: int) -> float:
        """Returns the distance between images of config.sampling and the reference images of the same noise."""
        reference = self.reference(config, count)
        features = self.features(config, timesteps, slice(0, count))
        if features is None:
            return np.inf
        return distance(features, Axes(reference.mean(axis=0), reference.std(axis=0)))

    def to_data(self, config: ConfigDict, timesteps: Int32[np.ndarray, "steps"], count: int) -> float:
        """Returns the distance between images of config.sampling and the data."""
        features = self.features(config, timesteps, slice(0, count))
        return np.inf if features is None else self.comparison.to_data(features)


def distance(features: Float[np.ndarray, "n axes"], other: Axes) -> float:
    """Returns the squared differences of means and of standard deviations, summed over the axes."""
    mean_error = features.mean(axis=0) - other.means
    spread_error = features.std(axis=0) - other.spreads
    return float(np.sum(mean_error**2 + spread_error**2))


def choose(
    config: ConfigDict,
    denoiser: Denoiser,
    *,
    gaussian: DataGaussian,
    mixture: DataMixture | None,
    image_shape: ImageShape,
    comparison: Comparison | None,
) -> AutoStart:
    """Chooses the time grid for a config whose start, spacing or both are automatic.

    The result is a deterministic function of the weights and the config.

    gaussian: the Gaussian of the data, for a computed grid.
    mixture: the distribution of late starts.
    comparison: compares images, for an automatic start.
    """
    settings = config.sampling
    last = denoiser.schedule.num_timesteps - 1
    first = first_image(config)
    trial = Trial(denoiser=denoiser, mixture=mixture, comparison=comparison, image_shape=image_shape, first=first)
    count = _images(config)
    times = fine_times(denoiser.schedule.num_timesteps)
    errors = None
    if measures_grid(config):
        errors = _fine_errors(config, trial, gaussian, times=times, count=min(count, parallel.round_up(GRID_IMAGES)))

    def grid(t_start: int) -> np.ndarray:
        if errors is not None:
            return cheapest_grid(errors, times, n_steps=settings.n_steps, t_start=t_start)
        if settings.spacing == GAUSSIAN_SPACING:
            return gaussian_grid(gaussian, denoiser.schedule, n_steps=settings.n_steps, t_start=t_start)
        return time_grid(settings.n_steps, t_start, spacing=settings.spacing, schedule=denoiser.schedule)

    candidates = []
    start = settings.t_start if settings.gls else last
    if chooses_start(config):
        least = settings.n_steps - 1 if errors is None else least_start(times, settings.n_steps)
        candidates = search(config, trial, grid, count=count, within=(max(least, 1), last))
        start = best_of(candidates).t_start
    evaluated = config.eval.num_samples * sampling.nfe(settings.sampler, settings.n_steps)
    return AutoStart(grid(start), candidates, trial.network_calls, share=trial.network_calls / evaluated)


def first_image(config: ConfigDict) -> int:
    """Returns the index of the first image of the search. All cells of a sweep use the same images."""
    return parallel.round_up(config.eval.num_samples)


def _images(config: ConfigDict) -> int:
    """Returns the number of images from each start, within the limits IMAGES.

    Inside these limits, the search costs SHARE of the network calls of the evaluation.
    """
    settings = config.sampling
    nfe = sampling.nfe(settings.sampler, settings.n_steps)
    calls_per_image = FINE_STEPS if measures_grid(config) else 0
    if chooses_start(config):
        calls_per_image += REFERENCE_STEPS + CANDIDATES * nfe
    if needs_data(config):
        calls_per_image += MORE * len(AROUND) * nfe
    affordable = SHARE * config.eval.num_samples * nfe / calls_per_image
    return parallel.round_up(int(np.clip(affordable, *IMAGES)))


def _fine_errors(
    config: ConfigDict, trial: Trial, gaussian: DataGaussian, *, times: Int32[np.ndarray, "fine"], count: int
) -> Float[np.ndarray, "fine fine+1"]:
    """Measures the errors of single steps along the trajectories of `count` images (see `auto_grid.walk`)."""
    noise, _ = prior(config.seed, first=trial.first, batch_size=count, image_shape=trial.image_shape)
    denoiser = of_labels(config, parallel.replicate(trial.denoiser), labels_of(config, trial.first, count))
    _, errors = walk(denoiser, gaussian, noise, times=times, num_measured=min(count, GRID_IMAGES))
    trial.network_calls += len(times) * count
    return np.asarray(parallel.replicate(errors), np.float64)


def search(
    config: ConfigDict,
    trial: Trial,
    grid: Callable[[int], Int32[np.ndarray, "steps"]],
    *,
    count: int,
    within: tuple[int, int],
) -> list[Candidate]:
    """Tries starts for the sampler of config.sampling, with `count` images from each. Returns all candidates.

    grid: returns the timesteps from a start.
    within: the smallest and the largest start.
    """
    paired = config.copy_and_resolve_references()
    stochastic = sampling.lookup(config.sampling.sampler).needs_rng
    if stochastic:
        paired.sampling.sampler = "ddim"
    last = trial.denoiser.schedule.num_timesteps - 1

    def starts(fractions: Sequence[float], centre: int = 0) -> list[int]:
        return sorted({int(np.clip(round(centre + fraction * last), *within)) for fraction in fractions})

    tried: list[Candidate] = []
    with tqdm(total=CANDIDATES + stochastic * len(AROUND), desc="choosing the start") as progress:
        for offsets in ROUNDS:
            known = {candidate.t_start for candidate in tried}
            for start in starts(offsets, best_of(tried).t_start if tried else 0):
                if start not in known:
                    found = trial.to_reference(paired, grid(start), count)
                    tried.append(Candidate(start, count, found, "reference"))
                progress.update()
        if stochastic:
            for start in starts(AROUND, best_of(tried).t_start):
                found = trial.to_data(config, grid(start), MORE * count)
                tried.append(Candidate(start, MORE * count, found, "data"))
                progress.update()
    return tried


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Returns the candidate with the smallest distance.

    If some candidates are compared with the data, they are the last of the sequence, and only they are considered.
    """
    kind = candidates[-1].compared_with
    return min((c for c in candidates if c.compared_with == kind), key=lambda c: (c.distance, c.t_start))
