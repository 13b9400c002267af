"""Time grids: the properties that every sampler needs, and the properties of each spacing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.diffusion import NoiseSchedule
from sampling.time_grid import SPACINGS, time_grid


@st.composite
def requests(draw):
    t_start = draw(st.integers(0, 999))
    return draw(st.integers(1, t_start + 1)), t_start


@settings(deadline=None)
@given(request=requests(), spacing=st.sampled_from(list(SPACINGS)))
def test_every_grid(request, spacing):
    """Catches repeated times (quadratic and logsnr are dense near 0), a rounded start, and negative times."""
    n_steps, t_start = request
    grid = time_grid(n_steps, t_start, spacing, schedule=NoiseSchedule.linear())
    assert grid.dtype == (np.float64 if spacing == "sigma_rho" and n_steps > 1 else np.int32)
    assert grid.shape == (n_steps,)
    assert grid[0] == t_start
    assert grid[-1] >= 0
    assert (np.diff(grid) < 0).all()
    if spacing != "trailing" and n_steps > 1:
        assert grid[-1] == 0


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"sigma_rho"}))
def test_as_many_steps_as_times(spacing):
    """Catches times out of range. With as many steps as times, all spacings of integers must have every time."""
    np.testing.assert_array_equal(time_grid(300, 299, spacing, schedule=NoiseSchedule.linear()), np.arange(299, -1, -1))


def test_linear_is_the_papers_grid():
    """Catches rounding instead of truncation. The numbers are from the paper's code."""
    np.testing.assert_array_equal(time_grid(10, 700), [700, 622, 544, 466, 388, 311, 233, 155, 77, 0])
    np.testing.assert_array_equal(time_grid(3, 999), [999, 499, 0])


def test_quadratic_is_even_in_sqrt_t():
    """Catches steps that are not equal in sqrt(t)."""
    np.testing.assert_array_equal(time_grid(5, 400, "quadratic"), [400, 225, 100, 25, 0])


def test_trailing_steps_are_all_as_long():
    """Catches steps to t = 0 instead of t = -1."""
    np.testing.assert_array_equal(time_grid(10, 999, "trailing"), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99])
    np.testing.assert_array_equal(time_grid(4, 399, "trailing"), [399, 299, 199, 99])


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.linear(1e-4, 0.05, 1000)])
def test_logsnr_is_even_in_log_snr(schedule):
    """Catches a grid that is even in another variable, or for another schedule than the given one."""
    grid = time_grid(8, 999, "logsnr", schedule=schedule)
    steps = np.diff(schedule.half_log_snr(grid))
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.25)  # near t = 0 a step has only about 5 integers
    np.testing.assert_allclose(steps[:5], steps[:5].mean(), rtol=0.02)


def test_errors():
    """Catches a bad value that is accepted, or a message that does not say what is allowed."""
    with pytest.raises(ValueError, match="'karras' is not known; choose from linear, quadratic, logsnr, trailing"):
        time_grid(3, 10, "karras")
    for n_steps in (0, 12):
        with pytest.raises(ValueError, match=f"n_steps={n_steps} must be from 1 to t_start \\+ 1 = 11"):
            time_grid(n_steps, 10)
    with pytest.raises(ValueError, match="t_start=1000 is beyond the schedule's last time 999"):
        time_grid(3, 1000, "logsnr", schedule=NoiseSchedule.linear())
    with pytest.raises(ValueError, match="'logsnr' needs the noise schedule"):
        time_grid(3, 10, "logsnr")
