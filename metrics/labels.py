"""Label statistics: how often a classifier assigns each label to the samples, compared with the data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from ml_collections import ConfigDict

import datasets
from core import parallel
from core.errors import UserError
from core.imports import function_of
from core.shapes import Pixels
from metrics.features import classifier_path
from models import classifier

EM_STEPS = 1000  # steps of expectation maximisation in `corrected_shares`


class Labeller(NamedTuple):
    """A classifier whose labels are counted.

    Attributes:
      scores: maps uint8 images on the devices to scores of shape [batch, labels]. The label of an image is the one with
        the highest score.
      name: a name that identifies the classifier.
    """

    scores: Callable[[Pixels], Any]
    name: str

    def count(self, images: Pixels, count: int) -> Int[np.ndarray, "labels"]:
        """The number of images with each label, among the first `count` images.

        Raises UserError if the scores have a wrong shape or are not finite.
        """
        scores = parallel.all_rows(jnp.asarray(self.scores(images)))
        if scores.ndim != 2 or len(scores) != len(images) or not np.isfinite(scores).all():
            raise UserError(
                f"eval.classifier={self.name!r}: expected finite scores [{len(images)}, K], got {list(scores.shape)}"
            )
        return np.bincount(scores[:count].argmax(axis=1), minlength=scores.shape[1])


def load_labeller(config: ConfigDict) -> Labeller | None:
    """The classifier config.eval.classifier or, if that is empty, the data set's classifier; None if there is neither.

    config.eval.classifier is "module:function". The function maps uint8 images [batch, height, width, channels] on the
    devices to scores [batch, labels]. Raises UserError if it cannot be imported.
    """
    entry = config.eval.classifier
    if entry:
        return Labeller(function_of(entry, "eval.classifier"), entry)
    path = classifier_path(config)
    if not path.exists():
        return None
    stored = classifier.load(path, datasets.image_shape(config))
    graphdef, params = nnx.split(stored.network)

    @jax.jit
    def scores(params, images):
        network = nnx.merge(graphdef, params)
        return network.logits(network.features(images))

    return Labeller(jax.tree_util.Partial(scores, parallel.replicate(params)), f"{path.name} {stored.digest[:16]}")


class LabelScores(NamedTuple):
    """The labels of samples, compared with those of the data.

    Attributes:
      histogram: the share of samples with each label.
      data_histogram: the share of images of the data with each label.
      entropy: the entropy of `histogram`, in bits.
      data_entropy: the entropy of `data_histogram`, in bits.
      distance: the total variation distance between the histograms, from 0 to 1. It is the smallest share of samples
        whose labels must change for the histograms to be equal.
    """

    histogram: list[float]
    data_histogram: list[float]
    entropy: float
    data_entropy: float
    distance: float


def label_scores(counts: Int[np.ndarray, "labels"], data_counts: Int[np.ndarray, "labels"]) -> LabelScores:
    """Compares the label counts of samples with the label counts of the data."""
    p = counts / np.sum(counts)
    q = data_counts / np.sum(data_counts)
    distance = float(np.abs(p - q).sum() / 2)
    return LabelScores(
        histogram=p.tolist(),
        data_histogram=q.tolist(),
        entropy=entropy(p),
        data_entropy=entropy(q),
        distance=distance,
    )


def entropy(shares: Float[np.ndarray, "labels"]) -> float:
    """The entropy, in bits, of shares that sum to 1. It is at most log2 of the number of labels."""
    present = shares[shares > 0]
    return float(-(present * np.log2(present)).sum()) + 0.0  # turns -0.0 into 0.0


def corrected_shares(
    shares: Float[np.ndarray, "labels"], confusion: Float[np.ndarray, "labels labels"]
) -> Float[np.ndarray, "labels"]:
    """Estimates the true shares of labels from the shares that a classifier assigned and its confusion matrix.

    confusion[i, j] is the share of images of label i to which the classifier assigns label j, so each row sums to 1.
    The result maximises the likelihood of the assigned labels. It is found by expectation maximisation (Saerens et al.
    2002). Unlike a product with the inverse of the matrix, it is never negative.
    """
    true = np.full(len(shares), 1 / len(shares))
    for _ in range(EM_STEPS):
        joint = true[:, None] * confusion
        assigned = joint.sum(axis=0)
        posterior = np.divide(joint, assigned, out=np.zeros_like(joint), where=assigned > 0)
        true = posterior @ shares
    return true / true.sum()
