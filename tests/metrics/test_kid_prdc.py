"""KID, precision, recall, density and coverage against torch-fidelity and prdc (see tests/data/README.md)."""

import numpy as np
import pytest

from metrics import kid_prdc
from metrics.kid_prdc import density_coverage, kid, precision_recall, squared_mmd, squared_radii


@pytest.fixture(scope="module")
def golden():
    arrays = np.load("tests/data/fidelity.npz", allow_pickle=False)
    return {name: array if array.ndim else float(array) for name, array in arrays.items()}


def test_squared_mmd_is_that_of_torch_fidelity(golden):
    """Catches a biased estimate, a wrong kernel, and a missing scale."""
    found = squared_mmd(golden["real"][:200].astype(np.float64), golden["fake"].astype(np.float64))
    assert found == pytest.approx(golden["kid_first_200"], rel=1e-9)


def test_kid_over_subsets_is_that_of_torch_fidelity(golden):
    """Catches subsets drawn with replacement and a spread divided by their number. Tolerance: 4 standard errors."""
    found = kid(golden["real"], golden["fake"], subsets=400, subset_size=50)
    assert abs(found.mean - golden["kid_50_mean"]) < 4 * golden["kid_50_std"] * (2 / 400) ** 0.5
    assert found.std == pytest.approx(golden["kid_50_std"], rel=0.2)
    assert kid(golden["real"], golden["fake"]) == kid(golden["real"], golden["fake"])


def test_kid_of_all_samples_has_no_spread(golden):
    """Catches an error bar of rounding errors if a subset is the whole set, and subsets larger than a set."""
    real = golden["real"][:50]
    fake = golden["fake"][:50]
    found = kid(real, fake)
    assert found.mean == pytest.approx(squared_mmd(real, fake)) and found.std is None
    assert found.subset_size == kid(real, golden["fake"]).subset_size == 50
    assert kid(real, golden["fake"]).std > 0


def test_precision_and_recall_are_those_of_torch_fidelity_and_prdc(golden, monkeypatch):
    """Catches precision and recall exchanged, a sample counted as its own neighbour, and a block of rows lost."""
    monkeypatch.setattr(kid_prdc, "BLOCK", 33)
    found = precision_recall(golden["real"], golden["fake"])
    assert found == pytest.approx((golden["tf_precision"], golden["tf_recall"]), abs=1e-6)
    assert found == pytest.approx((golden["prdc3_precision"], golden["prdc3_recall"]), abs=1e-12)


def test_density_and_coverage_are_those_of_prdc(golden, monkeypatch):
    """Catches a wrong number of neighbours, or real and generated samples exchanged."""
    monkeypatch.setattr(kid_prdc, "BLOCK", 33)
    for k in (3, 5):
        expected = golden[f"prdc{k}_density"], golden[f"prdc{k}_coverage"]
        assert density_coverage(golden["real"], golden["fake"], k) == pytest.approx(expected, rel=1e-12)


def test_precomputed_radii_change_nothing(golden):
    """Catches radii for another k, and samples counted as their own neighbours."""
    real = golden["real"]
    fake = golden["fake"]
    radii = squared_radii(real)
    distances = np.sort(((real[:20, None].astype(np.float64) - real) ** 2).sum(axis=2), axis=1)
    np.testing.assert_allclose(radii[:20], distances[:, 1 : radii.shape[1] + 1], rtol=1e-9)
    for score in (precision_recall, density_coverage):
        assert score(real, fake, real_radii=radii) == score(real, fake)


def test_too_few_samples_are_refused(golden):
    """Catches a distance to a neighbour that does not exist, and a division by zero."""
    few = golden["fake"][:3]
    for score in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="more than"):
            score(golden["real"], few) if score is precision_recall else score(few, golden["fake"])
    with pytest.raises(ValueError, match="at least 2"):
        kid(golden["real"], few[:1])
