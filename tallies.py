"""What one pass over images leaves behind, in memory that does not grow with their number."""

from collections.abc import Iterable, Mapping

import numpy as np

from moments import Moments

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
