"""The table of metrics: a new metric is a function and a row of METRICS."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from metrics import kid_prdc
from metrics.frechet import Distance, Reference, distance
from metrics.kid_prdc import Kid
from metrics.labels import LabelScores, label_scores
from metrics.results import Result
from metrics.tally import Tally


class Metric(NamedTuple):
    """A row of METRICS.

    Attributes:
      function: maps the accumulated samples (a Tally) and the reference to one value for each field.
      fields: the fields of result.json in which the values are stored.
      needs: the data that the function needs, a key of AVAILABLE.
    """

    function: Callable[[Tally, Reference], Sequence[Any]]
    fields: tuple[str, ...]
    needs: str


def frechet(tally: Tally, reference: Reference) -> Distance:
    """The Fréchet distance of all samples, with its standard error and its limit for infinitely many samples."""
    return distance(tally.groups, reference)


def num_compared(tally: Tally, reference: Reference) -> tuple[int]:
    """The number of samples that KID, precision, recall, density and coverage use."""
    return (len(tally.reservoir),)


def kid(tally: Tally, reference: Reference) -> Kid:
    """The kernel Inception distance, see `kid_prdc.kid`."""
    return kid_prdc.kid(reference.features, tally.reservoir)


def precision_recall(tally: Tally, reference: Reference) -> tuple[float, float]:
    """Precision and recall, see `kid_prdc.precision_recall`."""
    return kid_prdc.precision_recall(reference.features, tally.reservoir, real_radii=reference.squared_radii)


def density_coverage(tally: Tally, reference: Reference) -> tuple[float, float]:
    """Density and coverage, see `kid_prdc.density_coverage`."""
    return kid_prdc.density_coverage(reference.features, tally.reservoir, real_radii=reference.squared_radii)


def label_shares(tally: Tally, reference: Reference) -> LabelScores:
    """The shares of the labels, their entropies and the distance between them, see `labels.label_scores`."""
    return label_scores(tally.label_counts, reference.label_counts)


METRICS = (
    Metric(frechet, ("score", "score_error", "score_at_infinity"), needs="moments"),
    Metric(num_compared, ("num_compared",), needs="features"),
    Metric(kid, ("kid", "kid_std", "kid_subset_size"), needs="features"),
    Metric(precision_recall, ("precision", "recall"), needs="features"),
    Metric(density_coverage, ("density", "coverage"), needs="features"),
    Metric(
        label_shares,
        ("label_histogram", "data_label_histogram", "label_entropy", "data_label_entropy", "label_distance"),
        needs="labels",
    ),
)


def _has_features(tally: Tally, reference: Reference) -> bool:
    if reference.features is None:
        return False
    return min(len(reference.features), len(tally.reservoir)) > kid_prdc.DENSITY_NEIGHBOURS


def _has_labels(tally: Tally, reference: Reference) -> bool:
    return reference.label_counts is not None and len(tally.label_counts) > 0


AVAILABLE: dict[str, Callable[[Tally, Reference], bool]] = {
    "moments": lambda tally, reference: True,
    "features": _has_features,
    "labels": _has_labels,
}
"""For each kind of data that a metric may need: whether both the samples and the reference have it."""


def scores(tally: Tally, reference: Reference) -> Result:
    """The values of all METRICS, by field.

    If the data of a metric are missing (see AVAILABLE), its fields are None. The fields of the label metric are left
    out instead.
    """
    result: Result = {}
    for metric in METRICS:
        if AVAILABLE[metric.needs](tally, reference):
            result |= zip(metric.fields, metric.function(tally, reference), strict=True)
        elif metric.needs != "labels":
            result |= dict.fromkeys(metric.fields)
    return result
