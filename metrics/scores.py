"""All scores of one evaluation: Fréchet distance, sample-based metrics and label shares."""

from typing import Any

import numpy as np

from metrics import kid_prdc
from metrics.frechet import Reference, distance
from metrics.labels import label_scores
from metrics.tally import Tally

Scores = dict[str, Any]


def scores(tally: Tally, reference: Reference) -> Scores:
    """Every score that one pass gives; None where samples or the statistics file do not suffice.

    Those of labels are left out without a classifier. Those of single features (KID, precision, recall, density,
    coverage) rest on the reservoirs, `num_compared` samples.
    """
    found = distance(tally.groups, reference)
    result: Scores = {
        "score": found.value,
        "score_error": found.error,
        "score_at_infinity": found.at_infinity,
    }
    return result | _sample_scores(tally.reservoir, reference) | _label_scores(tally, reference)


def _sample_scores(fake: np.ndarray, reference: Reference) -> Scores:
    names = ("num_compared", "kid", "kid_std", "kid_subset_size", "precision", "recall", "density", "coverage")
    real = reference.features
    if real is None or min(len(real), len(fake)) <= kid_prdc.DENSITY_NEIGHBOURS:
        return dict.fromkeys(names)
    values = (
        len(fake),
        *kid_prdc.kid(real, fake),
        *kid_prdc.precision_recall(real, fake, real_radii=reference.squared_radii),
        *kid_prdc.density_coverage(real, fake, real_radii=reference.squared_radii),
    )
    return dict(zip(names, values, strict=True))


def _label_scores(tally: Tally, reference: Reference) -> Scores:
    if reference.label_counts is None or not len(tally.label_counts):
        return {}
    return label_scores(tally.label_counts, reference.label_counts)
