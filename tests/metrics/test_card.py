"""The evaluation report, and the table of metrics that it prints."""

import numpy as np
import pytest

from metrics import card, results, scores
from metrics.features import Features
from metrics.frechet import Reference
from metrics.tally import Tally

FEATURES = Features(
    extract=None,
    dim=3,
    name="inception",
    score_name="FID",
    note="Inception-v3",
    digest="f" * 64,
    resize="bilinear to 299 x 299",
)


@pytest.fixture
def tally(rng):
    tally = Tally(3)
    tally.update(rng.standard_normal((60, 3)), np.array([20, 40]))
    return tally


def reference_with(features=None, label_counts=None):
    return Reference(
        mean=np.zeros(3),
        cov=np.eye(3),
        digest="a" * 64,
        description="digits, train split, 99 images",
        features=features,
        label_counts=label_counts,
    )


@pytest.fixture
def result(tally):
    reference = reference_with(tally.reservoir, np.array([1, 1]))
    settings = {
        "sampler": "pndm",
        "n_steps": 5,
        "nfe": 14,
        "gls": True,
        "baseline": "",
        "clip_x0": False,
        "spacing": "linear",
        "t_start": 400,
        "auto_start": None,
        "t_last": 0,
        "checkpoint_step": 9,
        "weights_sha256": "e" * 64,
        "ema_rate": 0.9999,
        "rounding": results.ROUNDING,
        "seed": 3,
        "num_samples": 60,
    }
    return settings | results.score_settings(FEATURES, reference) | scores.scores(tally, reference)


def test_card_names_all_that_makes_fids_differ(result):
    """Catches a report that leaves out a setting which someone else needs to repeat the score."""
    text = card.card(result)
    for expected in (
        f"FID  {'':24}{result['score']:.4g} ± {result['score_error']:.2g} (jackknife, 10 groups)",
        "60, seed 3",
        "digits, train split, 99 images (SHA-256 aaaaaaaaaaaaaaaa)",
        "Inception-v3 (SHA-256 ffffffffffffffff)",
        "bilinear to 299 x 299",
        "nearest of 256 grey levels",
        "pndm, n = 5, NFE 14, predicted x_0 not clipped",
        "linear, t = 400 to 0, Gaussian late start",
        "step 9, EMA 0.9999 (SHA-256 eeeeeeeeeeeeeeee)",
        "33.3 66.7",
    ):
        assert expected in text, expected
    assert "t = 400 to 0, Gaussian late start (isotropic)" in card.card(result | {"baseline": "isotropic"})
    cost = {"network_calls": 77, "share_of_evaluation": 0.123}
    expected = "late start, chosen automatically with 77 network calls (12.3% more)"
    assert expected in card.card(result | {"auto_start": cost})


def test_card_prints_only_what_there_is(result):
    """Catches a sampler printed for images generated elsewhere, or a score where none was computed."""
    elsewhere = {name: value for name, value in result.items() if name not in ("sampler", "seed")}
    assert "sampler" not in card.card(elsewhere | {"source": "theirs.npz"})
    assert "FID" not in card.card(result | results.score_settings(None, None) | {"score": None})


def test_missing_data_leave_their_metrics_out(tally):
    """Catches an error, or a number, for metrics whose data the reference or the samples lack."""
    found = scores.scores(tally, reference_with())
    assert found["score"] > 0 and found["kid"] is None and found["coverage"] is None
    assert "label_entropy" not in found
    few = scores.scores(tally, reference_with(tally.reservoir[:5], np.array([1, 1])))
    assert few["num_compared"] is None and few["precision"] is None and few["label_distance"] == pytest.approx(1 / 6)


def test_each_metric_is_stored_in_fields_of_its_own():
    """Catches a field that two rows of METRICS fill, one that Result lacks, and a printed one that no metric fills."""
    fields = [field for metric in scores.METRICS for field in metric.fields]
    assert len(set(fields)) == len(fields)
    assert card.SCORE_ROWS.keys() <= set(fields) <= results.Result.__annotations__.keys()
    assert {metric.needs for metric in scores.METRICS} <= scores.AVAILABLE.keys()
