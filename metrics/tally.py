"""Constant-memory accumulator of feature moments, sampled features and label counts."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
from core import parallel
from core.arithmetic import ceil_div
from core.errors import UserError
from core.moments import Moments
from core.shapes import HostPixels, Pixels
from images import generated
from images.generated import OpenedImages
from metrics.features import Features, rebatched
from metrics.labels import Labeller

GROUPS = 10  # groups of the jackknife
RESERVOIR = 10_000  # largest number of feature vectors that are kept


class Tally:
    """Accumulates moments of features in groups, a bounded number of feature vectors, and label counts.

    Image i belongs to group i % groups; a jackknife over the groups gives the standard error of a score. The reservoir
    keeps the feature vectors of every stride-th image, in float32, up to RESERVOIR vectors. Up to rounding, the result
    does not depend on the batches.

    Attributes:
      count: the number of images so far.
      groups: the moments of each group.
      label_counts: the number of images with each label; empty without a labeller.
    """

    def __init__(self, dim: int, groups: int = GROUPS, stride: int = 1):
        self.count = 0
        self.groups = [Moments(dim) for _ in range(groups)]
        self.label_counts = np.zeros(0, np.int64)
        self._stride = stride
        self._reservoir = [np.zeros((0, dim), np.float32)]

    def update(
        self, features: Float[np.ndarray, "batch dim"], label_counts: Int[np.ndarray, "labels"] | None = None
    ) -> None:
        """Adds the features of the next images, and the number of these images with each label."""
        indices = np.arange(self.count, self.count + len(features))
        for number, moments in enumerate(self.groups):
            moments.update(features[indices % len(self.groups) == number])
        room = RESERVOIR - sum(map(len, self._reservoir))
        if room > 0:
            self._reservoir.append(np.asarray(features[indices % self._stride == 0][:room], np.float32))
        if label_counts is not None:
            self.label_counts = _padded_sum(self.label_counts, label_counts)
        self.count += len(features)

    @property
    def moments(self) -> Moments:
        """The moments of all images."""
        return merged(self.groups)

    @property
    def reservoir(self) -> Float32[np.ndarray, "kept dim"]:
        """The feature vectors that are kept."""
        if len(self._reservoir) > 1:
            self._reservoir = [np.concatenate(self._reservoir)]
        return self._reservoir[0]

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """The state as named arrays; `of_arrays` is the inverse."""
        arrays = {"label_counts": self.label_counts, "reservoir": self.reservoir, "stride": np.asarray(self._stride)}
        for number, moments in enumerate(self.groups):
            arrays |= {f"group{number}_{name}": array for name, array in moments.arrays().items()}
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> "Tally":
        """Rebuilds the accumulator from the result of `arrays`."""
        tally = cls(dim=0, groups=0, stride=int(arrays["stride"]))
        while f"group{len(tally.groups)}_count" in arrays:
            prefix = f"group{len(tally.groups)}_"
            group = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
            tally.groups.append(Moments.of_arrays(group))
        tally.count = sum(moments.count for moments in tally.groups)
        tally.label_counts = arrays["label_counts"]
        tally._reservoir = [arrays["reservoir"]]
        return tally


def merged(groups: Iterable[Moments]) -> Moments:
    """The moments of all groups together, as a new accumulator."""
    first, *others = groups
    whole = Moments(first.dim).merge(first)
    for moments in others:
        whole.merge(moments)
    return whole


def _padded_sum(counts: Int[np.ndarray, "n"], more: Int[np.ndarray, "m"]) -> Int[np.ndarray, "size"]:
    """The sum of two arrays, after the shorter one is padded with zeros."""
    size = max(len(counts), len(more))
    return np.pad(counts, (0, size - len(counts))) + np.pad(more, (0, size - len(more)))


def observe(tally: Tally, features: Features | None, labeller: Labeller | None, pixels: Pixels, *, count: int) -> None:
    """Adds the first `count` images of a batch to the tally of every process."""
    vectors = parallel.all_rows(features.extract(pixels))[:count] if features else np.zeros((count, 0))
    tally.update(vectors, labeller.count(pixels, count) if labeller else None)


def tally_split(images: HostPixels, features: Features, labeller: Labeller | None, *, batch_size: int) -> Tally:
    """Accumulates a split of the data, in one group. Each process reads its own rows of the batches."""
    size = parallel.round_up(batch_size)
    tally = Tally(features.dim, groups=1, stride=ceil_div(len(images), RESERVOIR))
    batches = datasets.in_order(images, size)
    for batch, _ in tqdm(batches, desc="features", total=ceil_div(len(images), size)):
        count = min(size, len(images) - tally.count)
        observe(tally, features, labeller, pixels=parallel.shard_batch(batch), count=count)
    return tally


def open_images(config: ConfigDict, path: Path) -> OpenedImages:
    """Checks and opens all images in a folder or an array file.

    Raises UserError if there is only one image, and as `generated.open_images` does.
    """
    images = generated.open_images(path, datasets.image_shape(config))
    if images.count < 2:
        raise UserError(f"{path}: holds one image; a covariance needs at least 2")
    return images


def tally_images(
    config: ConfigDict, features: Features, labeller: Labeller | None, images: OpenedImages
) -> tuple[Tally, str]:
    """Accumulates images made by other software. Returns the tally and the SHA-256 of the pixels."""
    tally = Tally(features.dim, stride=ceil_div(images.count, RESERVOIR))
    digest = hashlib.sha256()

    def hashed() -> Iterator[tuple[HostPixels, int]]:
        for batch, count in images.batches:
            digest.update(batch.tobytes())
            yield batch, count

    with tqdm(total=images.count, desc=images.path.name, unit="image") as progress:
        for pixels, count in rebatched(hashed(), min(config.eval.feature_batch_size, images.count)):
            observe(tally, features, labeller, pixels, count=count)
            progress.update(count)
    return tally, digest.hexdigest()
