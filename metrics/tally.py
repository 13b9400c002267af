"""Constant-memory accumulator of feature moments, sampled features and label counts."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from core import parallel
from core.errors import UserError
from core.moments import Moments
from images import generated
from metrics.features import Features, rebatched
from metrics.labels import Labeller

GROUPS = 10
RESERVOIR = 10_000


class Tally:
    """Moments of features in groups, a bounded reservoir of the features themselves, and counts of labels.

    Image i belongs to group i % groups, so that groups tell how far chance moves a score. The reservoir takes every
    stride-th image's features, in float32, until it holds RESERVOIR.
    """

    def __init__(self, dim: int, groups: int = GROUPS, stride: int = 1):
        self.count = 0
        self.groups = [Moments(dim) for _ in range(groups)]
        self.label_counts = np.zeros(0, np.int64)
        self._stride = stride
        self._reservoir = [np.zeros((0, dim), np.float32)]

    def update(self, features: np.ndarray, label_counts: np.ndarray = ()) -> None:
        """Adds features [B, d] of the next B images, and how many of them have each label."""
        indices = np.arange(self.count, self.count + len(features))
        for number, moments in enumerate(self.groups):
            moments.update(features[indices % len(self.groups) == number])
        if (room := RESERVOIR - sum(map(len, self._reservoir))) > 0:
            self._reservoir.append(np.asarray(features[indices % self._stride == 0][:room], np.float32))
        self.label_counts = _add(self.label_counts, np.asarray(label_counts, np.int64))
        self.count += len(features)

    @property
    def moments(self) -> Moments:
        """Of all images."""
        return merged(self.groups)

    @property
    def reservoir(self) -> np.ndarray:
        """float32 [at most RESERVOIR, d]."""
        return np.concatenate(self._reservoir)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, for `of_arrays`."""
        arrays = {"label_counts": self.label_counts, "reservoir": self.reservoir, "stride": np.asarray(self._stride)}
        for number, moments in enumerate(self.groups):
            arrays |= {f"group{number}_{name}": array for name, array in moments.arrays().items()}
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Tally":
        tally = cls(0, 0, int(arrays["stride"]))
        while f"group{len(tally.groups)}_count" in arrays:
            prefix = f"group{len(tally.groups)}_"
            group = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
            tally.groups.append(Moments.of_arrays(group))
        tally.count = sum(moments.count for moments in tally.groups)
        tally.label_counts, tally._reservoir = arrays["label_counts"], [arrays["reservoir"]]
        return tally


def merged(groups: Iterable[Moments]) -> Moments:
    """The moments of all groups together; the groups stay as they are."""
    first, *others = groups
    whole = Moments(first.dim).merge(first)
    for moments in others:
        whole.merge(moments)
    return whole


def _add(counts: np.ndarray, more: np.ndarray) -> np.ndarray:
    size = max(len(counts), len(more))
    return np.pad(counts, (0, size - len(counts))) + np.pad(more, (0, size - len(more)))


def observe(tally: Tally, features: Features | None, labeller: Labeller | None, pixels: jax.Array, count: int) -> None:
    """Adds the first `count` of uint8 images [B, H, W, C] on the devices to a tally, the same on every process."""
    found = parallel.all_rows(features.extract(pixels))[:count] if features else np.zeros((count, 0))
    tally.update(found, labeller.count(pixels, count) if labeller else ())


def tally_split(images: np.ndarray, features: Features, labeller: Labeller | None, batch_size: int) -> Tally:
    tally, size = Tally(features.dim, groups=1, stride=-(-len(images) // RESERVOIR)), parallel.round_up(batch_size)
    for batch, _ in tqdm(datasets.in_order(images, size), "features", -(-len(images) // size)):
        count = min(size, len(images) - tally.count)
        observe(tally, features, labeller, parallel.shard_batch(batch), count)
    return tally


def tally_images(config: ConfigDict, features: Features, labeller: Labeller | None, path: Path) -> tuple[Tally, str]:
    """What the images of a folder or .npz leave in one pass, and the SHA-256 of their pixels.

    Raises UserError for a single image, and as `sources.open_images`.
    """
    total, images = generated.open_images(path, datasets.image_shape(config))
    if total < 2:
        raise UserError(f"{path}: holds one image; a covariance needs at least 2")
    tally, digest = Tally(features.dim, stride=-(-total // RESERVOIR)), hashlib.sha256()

    def hashed():
        for batch, count in images:
            digest.update(batch.tobytes())
            yield batch, count

    with tqdm(total=total, desc=path.name, unit="image") as progress:
        for pixels, count in rebatched(hashed(), min(config.eval.feature_batch_size, total)):
            observe(tally, features, labeller, pixels, count)
            progress.update(count)
    return tally, digest.hexdigest()
