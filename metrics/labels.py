"""Whether samples show all that the data show: how often a classifier gives each label."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import datasets
from core import parallel
from core.errors import UserError
from metrics.features import classifier_path
from models import classifier


class Labeller(NamedTuple):
    """A classifier, and what tells it from others."""

    scores: Callable[[jax.Array], Any]  # uint8 [B, H, W, C] -> [B, K], highest for the label
    name: str

    def count(self, images: jax.Array, count: int) -> np.ndarray:
        """How many of the first `count` images have each label, int [K].

        Raises UserError where the classifier's answer has another shape or is not finite.
        """
        scores = parallel.all_rows(jnp.asarray(self.scores(images)))
        if scores.ndim != 2 or len(scores) != len(images) or not np.isfinite(scores).all():
            raise UserError(
                f"eval.classifier={self.name!r}: expected finite scores [{len(images)}, K], got {list(scores.shape)}"
            )
        return np.bincount(scores[:count].argmax(axis=1), minlength=scores.shape[1])


def load_labeller(config: ConfigDict) -> Labeller | None:
    """The classifier that config.eval.classifier names, or else the data set's own; None where there is neither.

    An entry "module:function" names a function from uint8 images [B, H, W, C] on the device to scores [B, K]. Raises
    UserError where it cannot be imported.
    """
    entry = config.eval.classifier
    if entry:
        return Labeller(_import(entry), entry)
    if not (path := classifier_path(config)).exists():
        return None
    stored = classifier.load(path, datasets.image_shape(config))
    graphdef, params = nnx.split(stored.network)

    @jax.jit
    def scores(params, images):
        network = nnx.merge(graphdef, params)
        return network.logits(network.features(images))

    return Labeller(jax.tree_util.Partial(scores, parallel.replicate(params)), f"{path.name} {stored.digest[:16]}")


def _import(entry: str) -> Callable[[jax.Array], Any]:
    module, _, name = entry.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"eval.classifier={entry!r}: cannot be imported ({error}); give module:function") from error
    if not callable(function):
        raise UserError(f"eval.classifier={entry!r} is no function")
    return function


def label_scores(counts: Sequence[int], data_counts: Sequence[int]) -> dict[str, Any]:
    """The shares of the labels, their entropy in bits (the data's beside it), and their distance to the data's.

    The distance is the total variation, half the sum of |p - q|: the share of samples that would have to change label.
    """
    p, q = _shares(counts), _shares(data_counts)
    return {
        "label_histogram": p.tolist(),
        "data_label_histogram": q.tolist(),
        "label_entropy": entropy(p),
        "data_label_entropy": entropy(q),
        "label_distance": float(np.abs(p - q).sum() / 2),
    }


def entropy(shares: np.ndarray) -> float:
    """In bits; at most log2 of the number of labels."""
    present = shares[shares > 0]
    return float(-(present * np.log2(present)).sum()) + 0.0  # not -0.0


def _shares(counts: Sequence[int]) -> np.ndarray:
    return np.asarray(counts, np.float64) / np.sum(counts)
