import numpy as np
import pytest
import scipy.linalg

import evaluation
from errors import UserError
from evaluation import Moments, frechet_distance


def moments_of(samples):
    return np.mean(samples, axis=0, dtype=np.float64), np.cov(samples, rowvar=False, dtype=np.float64)


@pytest.fixture(scope="module")
def golden():
    """pytorch-fid's own distances (see tests/data/README.md)."""
    return np.load("tests/data/frechet.npz", allow_pickle=False)


def test_full_rank_distance_is_that_of_pytorch_fid(golden):
    """A wrong root, trace or normalisation of the covariance."""
    moments = [golden[f"full_{kind}_{side}"] for side in "ab" for kind in ("mean", "cov")]
    assert frechet_distance(*moments) == pytest.approx(float(golden["full_fid"]), rel=1e-6)


def test_rank_deficient_distance_is_that_of_pytorch_fid(golden):
    """A Cholesky factor that fails, or a fallback that adds to the covariance, with fewer samples than dimensions."""
    distance = frechet_distance(*moments_of(golden["deficient_a"]), *moments_of(golden["deficient_b"]))
    assert distance == pytest.approx(float(golden["deficient_fid"]), rel=1e-6)


def test_distance_of_gaussians_in_closed_form(rng):
    """For commuting covariances the distance is a sum over directions."""
    basis = scipy.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 4, (2, 6))
    mean = rng.standard_normal(6)
    expected = mean @ mean + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = frechet_distance(mean, (basis * a) @ basis.T, np.zeros(6), (basis * b) @ basis.T)
    assert found == pytest.approx(expected, rel=1e-10)


def test_distance_is_symmetric_and_zero_to_itself(rng):
    a, b = (moments_of(rng.standard_normal((50, 8)) * scale) for scale in (1, 3))
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-10)
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("broken", [{"cov1": np.full((2, 2), np.nan)}, {"mean2": np.zeros(3)}, {"cov2": np.eye(3)}])
def test_distance_refuses_moments_that_give_no_number(broken):
    """A NaN that travels into a table, or moments of another feature network."""
    moments = {"mean1": np.zeros(2), "cov1": np.eye(2), "mean2": np.zeros(2), "cov2": np.eye(2)}
    with pytest.raises(ValueError, match="NaN|fit together"):
        frechet_distance(**moments | broken)


def test_statistics_of_other_feature_weights_are_refused(config, rng):
    """A score between features of two different networks."""
    features = evaluation.Features(extract=None, dim=3, score_name="FD", note="", digest="one")
    evaluation.save_reference(config, features, Moments(3).update(rng.standard_normal((9, 3))))
    assert evaluation.load_reference(config, features).cov.shape == (3, 3)
    with pytest.raises(UserError, match="other feature weights"):
        evaluation.load_reference(config, features._replace(digest="two"))
