"""Streaming moments, compared with NumPy on the whole array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.moments import Moments

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(40, 5)) @ RNG.normal(size=(5, 5)) + 3


def agrees(moments, vectors, rtol=1e-10):
    np.testing.assert_allclose(moments.mean, vectors.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(moments.cov, np.cov(vectors, rowvar=False), rtol=rtol)
    assert moments.count == len(vectors)


@settings(deadline=None)
@given(order=st.permutations(range(40)), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_any_batches_in_any_order(order, cuts):
    """Catches a batch, possibly empty, that is weighted or centred wrongly."""
    moments = Moments(5)
    for batch in np.split(VECTORS[order], sorted(cuts)):
        moments.update(batch)
    agrees(moments, VECTORS)


@settings(deadline=None)
@given(cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_merge(cuts):
    """Catches a missing cross term between accumulators with different shifts, and errors of empty accumulators."""
    first, second, third = (Moments(5).update(batch) for batch in np.split(VECTORS, sorted(cuts)))
    agrees(third.merge(first.merge(second)), VECTORS)


def test_a_large_mean_costs_no_digits():
    """Catches sums relative to zero, which leave 4 digits of this covariance, and float32 input summed in float32."""
    far = VECTORS + 1e6
    moments = Moments(5).update(far[:7]).merge(Moments(5).update(far[7:]))
    np.testing.assert_allclose(moments.cov, np.cov(VECTORS, rowvar=False), rtol=1e-8)
    single = VECTORS.astype(np.float32)
    agrees(Moments(5).update(single), single.astype(np.float64))


def test_pixels_are_summed_without_rounding():
    """Catches float32 sums beyond 2^24. Sums of the same pixels in two orders must agree in every bit."""
    pixels = np.random.default_rng(1).choice(np.uint8([0, 1, 200, 255]), (9000, 3), p=[0.1, 0.1, 0.1, 0.7])
    whole = Moments(3).update(pixels)
    count = len(pixels)
    integers = pixels.astype(np.int64)
    products = count * integers.T @ integers - np.outer(integers.sum(axis=0), integers.sum(axis=0))
    np.testing.assert_allclose(whole.cov, products / (count * (count - 1)), rtol=1e-13)
    pieces = Moments(3).update(pixels[5000:])
    pieces.merge(Moments(3).update(pixels[:17]).update(pixels[17:5000]))
    np.testing.assert_array_equal(pieces.cov, whole.cov)


def test_pixels_after_other_vectors():
    """Catches pixels summed relative to MIDDLE after vectors that were summed relative to their mean."""
    pixels = np.random.default_rng(2).integers(0, 256, (30, 5), np.uint8)
    agrees(Moments(5).update(VECTORS).update(pixels), np.concatenate([VECTORS, pixels]))


def test_errors():
    """Catches bad input that is added to the sums, and a mean or covariance of too few vectors."""
    moments = Moments(5)
    for bad, message in [
        (np.zeros((2, 4)), r"expected vectors \[B, 5\], got \[2, 4\]"),
        (np.zeros(5), r"expected vectors \[B, 5\], got \[5\]"),
        (np.full((1, 5), np.nan), "NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            moments.update(bad)
    with pytest.raises(ValueError, match="at least 1 vectors, has 0"):
        moments.mean  # noqa: B018
    with pytest.raises(ValueError, match="at least 2 vectors, has 1"):
        moments.update(VECTORS[:1]).cov  # noqa: B018
