"""The search of --mode=plan: the best solver, components and start for a number of network calls per image.

Each pair of a solver and a value of sampling.components first gets its automatic start (see `auto_start`). Successive
halving then compares the pairs by the distance between their images and the data: every round after the first keeps the
better half of the pairs, and doubles their numbers of images. Images of different pairs come from the same noise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32
from ml_collections import ConfigDict
from tqdm import tqdm

import sampling
from core import parallel
from sampling.auto_start import Trial, best_of, search
from sampling.time_grid import time_grid

PAIRED_IMAGES = 32  # number of images from each candidate start
ROUNDS_IMAGES = (32, 64, 128, 256, 512)  # total number of images of an entry at the end of each round
GROUPS = 8  # number of groups of the jackknife


@dataclasses.dataclass(eq=False)
class Entry:
    """A solver with its start, and the features of its images.

    Attributes:
      config: config.sampling has the sampler, n_steps, components, spacing and start.
      trial: draws the images.
      features: the features of all images so far; None if an image is not finite.
    """

    config: ConfigDict
    trial: Trial
    features: Float[np.ndarray, "n features"] | None

    def grow(self, count: int) -> None:
        """Draws more images, up to a total of `count`.

        All batches have the same size, so that the sampler is compiled once.
        """
        size = parallel.round_up(PAIRED_IMAGES)
        timesteps = _grid(self.config, self.trial)
        while self.features is not None and len(self.features) < count:
            first = len(self.features)
            more = self.trial.features(self.config, timesteps, slice(first, first + size))
            self.features = None if more is None else np.concatenate([self.features, more])

    @property
    def distance(self) -> float:
        """The distance between the images and the data; infinite if there are no images or one is not finite."""
        if self.features is None or not len(self.features):
            return np.inf
        return self.trial.comparison.to_data(self.features)

    def facts(self) -> dict[str, Any]:
        """Returns the row of plan.json."""
        settings = self.config.sampling
        names = ("sampler", "n_steps", "components", "t_start", "spacing")
        row = {name: settings[name] for name in names}
        row["nfe"] = sampling.nfe(settings.sampler, settings.n_steps)
        images = 0 if self.features is None else len(self.features)
        return row | {"images": images, "distance": self.distance if np.isfinite(self.distance) else None}


class Plan(NamedTuple):
    """All entries, with the best first, and the cost of the search.

    margin: the distance between the second entry's images and the data, minus the distance of the first entry's images.
    margin_error: the standard error of margin.
    """

    entries: list[Entry]
    margin: float | None
    margin_error: float | None
    network_calls: int


def steps_within(budget: int) -> dict[str, int]:
    """Returns, for each sampler, the largest number of steps with at most `budget` network calls.

    Adaptive samplers are left out, and samplers that need more calls for a single step.
    """
    found = {}
    for name, row in sampling.SAMPLERS.items():
        affordable = [n for n in range(1, budget + 1) if row.nfe(n) is not None and row.nfe(n) <= budget]
        if affordable:
            found[name] = affordable[-1]
    return found


def find(configs: Sequence[ConfigDict], trials: Sequence[Trial]) -> Plan:
    """Sorts all entries by their distance to the data.

    configs: one config for each pair of a solver and components.
    trials: the trial of each config.
    """
    entries = []
    for config, trial in zip(tqdm(configs, "starts"), trials, strict=True):
        entries.append(_with_start(config, trial))
    dropped: list[Entry] = []
    for count in ROUNDS_IMAGES:
        kept = len(entries) if count == ROUNDS_IMAGES[0] else max(2, (len(entries) + 1) // 2)
        dropped = entries[kept:] + dropped
        entries = entries[:kept]
        for entry in tqdm(entries, f"{count} images"):
            entry.grow(count)
        entries.sort(key=lambda entry: entry.distance)
    margin, error = _margin(*entries[:2]) if len(entries) > 1 else (None, None)
    calls = sum(trial.network_calls for trial in dict.fromkeys(trials))
    return Plan(entries + dropped, margin, error, calls)


def _with_start(config: ConfigDict, trial: Trial) -> Entry:
    """Returns the entry of a solver, with its automatic start and without images."""
    last = trial.denoiser.schedule.num_timesteps - 1
    config = config.copy_and_resolve_references()
    n_steps = config.sampling.n_steps

    def grid(t_start: int) -> Int32[np.ndarray, "steps"]:
        return time_grid(n_steps, t_start, spacing=config.sampling.spacing, schedule=trial.denoiser.schedule)

    count = parallel.round_up(PAIRED_IMAGES)
    candidates = search(config, trial, grid, count=count, within=(max(n_steps - 1, 1), last))
    config.sampling.t_start = best_of(candidates).t_start
    return Entry(config, trial, np.zeros((0, len(trial.comparison.data[0]))))


def _grid(config: ConfigDict, trial: Trial) -> Int32[np.ndarray, "steps"]:
    settings = config.sampling
    return time_grid(settings.n_steps, settings.t_start, settings.spacing, trial.denoiser.schedule)


def _margin(best: Entry, other: Entry) -> tuple[float, float] | tuple[None, None]:
    """Returns `Plan.margin` and `Plan.margin_error`, which is estimated by a jackknife over the images."""
    if best.features is None or other.features is None:
        return None, None
    groups = np.arange(len(best.features)) % GROUPS

    def difference(kept: np.ndarray) -> float:
        comparison = best.trial.comparison
        return comparison.to_data(other.features[kept]) - comparison.to_data(best.features[kept])

    rests = [difference(groups != group) for group in range(GROUPS)]
    error = np.sqrt((GROUPS - 1) * np.var(rests))
    return difference(groups >= 0), float(error)
