import numpy as np
import pytest

from metrics import tally as tally_module
from metrics.tally import Tally


@pytest.mark.parametrize("cuts", [(), (1, 2, 30), (13, 29)])
def test_same_tally_for_any_batches_and_after_a_pause(rng, cuts, monkeypatch):
    """Catches groups or a reservoir that depend on the batches, and a field that is lost by saving or loading."""
    monkeypatch.setattr(tally_module, "RESERVOIR", 9)
    vectors = rng.standard_normal((40, 3))
    labels = rng.integers(0, 5, 40)
    tally = Tally(3, groups=4, stride=3)
    for indices in np.split(np.arange(40), cuts):
        tally.update(vectors[indices], np.bincount(labels[indices]))
        tally = Tally.of_arrays(tally.arrays())
    for number, group in enumerate(tally.groups):
        np.testing.assert_allclose(group.cov, np.cov(vectors[number::4], rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(tally.moments.cov, np.cov(vectors, rowvar=False), rtol=1e-10)
    np.testing.assert_array_equal(tally.reservoir, vectors[::3][:9].astype(np.float32))
    assert tally.count == 40 and tally.label_counts.tolist() == np.bincount(labels).tolist()
