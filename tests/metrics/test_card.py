"""The card beside every score."""

import numpy as np
import pytest

from metrics import card, results, scores
from metrics.features import Features
from metrics.frechet import Reference
from metrics.tally import Tally

FEATURES = Features(None, 3, "inception", "FID", "Inception-v3", "f" * 64, "bilinear to 299 x 299")


@pytest.fixture
def result(rng):
    tally = Tally(3)
    tally.update(rng.standard_normal((60, 3)), [20, 40])
    reference = Reference(np.zeros(3), np.eye(3), "a" * 64, "digits, train split, 99 images", tally.reservoir, [1, 1])
    asked = {
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
    return asked | results.facts(FEATURES, reference) | scores.scores(tally, reference)


def test_card_names_all_that_makes_fids_differ(result):
    """A score that another cannot repeat."""
    text = card.text(result)
    for said in (
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
        assert said in text, said
    assert "t = 400 to 0, Gaussian late start (isotropic)" in card.text(result | {"baseline": "isotropic"})
    trial = {"network_calls": 77, "share_of_evaluation": 0.123}
    assert "late start, chosen by a trial of 77 network calls (12.3% more)" in card.text(result | {"auto_start": trial})


def test_card_of_what_was_not_scored_or_not_drawn_here(result):
    """A made-up sampler for images from elsewhere, or a score that there is none of."""
    elsewhere = {name: value for name, value in result.items() if name not in ("sampler", "seed")}
    assert "sampler" not in card.card(elsewhere | {"source": "theirs.npz"})
    assert "FID" not in card.card(result | results.facts(None, None) | {"score": None})
