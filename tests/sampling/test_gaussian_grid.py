"""The grid in closed form: its error against DDIM's own images, and its times against all grids of a short schedule."""

import itertools

import numpy as np
import pytest

import sampling
from core.diffusion import Denoiser, NoiseSchedule
from sampling.gaussian_grid import Transfer, gaussian_grid
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid


@pytest.fixture
def gaussian(rng):
    images = rng.standard_normal((60, 2, 2, 1)) * [[[1.5], [0.7]], [[0.2], [0.05]]] + 0.3
    return DataGaussian.fit([images], rank=None)


def test_spreads_are_those_of_ddim(gaussian, rng):
    """Catches a wrong factor of a step, and a last step that does not end in clean data.

    The Gaussian's start of noise z is linear in z. With exact predictions, DDIM's images have the spreads in question.
    """
    schedule = NoiseSchedule.linear()
    denoiser = Denoiser(lambda x, t: gaussian.eps(x, schedule.alpha_bar(t)), schedule)
    times = np.array([600, 250, 90, 20], np.int32)
    basis = np.asarray(gaussian.eigenvectors, np.float64).T.reshape(4, 2, 2, 1)
    noise = np.float32(np.concatenate([basis, np.zeros((1, 2, 2, 1))]))
    images = np.asarray(sampling.sample("ddim", denoiser, gaussian.sample(noise, schedule.alpha_bar(600)), times))
    moved = (images[:4] - images[4:]).reshape(4, 4)
    spreads = Transfer(gaussian, schedule).spreads(times)
    np.testing.assert_allclose(moved, spreads[:4, None] * basis.reshape(4, 4), atol=2e-5)


@pytest.mark.parametrize(("n_steps", "t_start"), [(1, 9), (2, 11), (3, 11), (4, 9)])
def test_no_grid_of_a_short_schedule_is_better(gaussian, n_steps, t_start):
    """Catches a search that stops at a grid which is not the best, by trying all grids."""
    schedule = NoiseSchedule.linear(0.005, 0.6, 12)
    transfer = Transfer(gaussian, schedule)
    all_grids = [
        np.array([t_start, *sorted(rest, reverse=True)]) for rest in itertools.combinations(range(t_start), n_steps - 1)
    ]
    least = min(float(transfer.error(transfer.spreads(times))) for times in all_grids)
    found = gaussian_grid(gaussian, schedule, n_steps=n_steps, t_start=t_start)
    assert found[0] == t_start and (np.diff(found) < 0).all()
    assert float(transfer.error(transfer.spreads(found))) == pytest.approx(least, rel=1e-9)


def test_residual_variance_counts_for_all_its_directions(rng):
    """Catches directions outside the kept eigenvectors that are left out, or counted once."""
    whole = DataGaussian(np.zeros(4), np.eye(4), np.array([2.0, 0.1, 0.1, 0.1]), np.float64(0), (2, 2, 1))
    low_rank = DataGaussian(np.zeros(4), np.eye(4)[:, :1], np.array([2.0]), np.float64(0.1), (2, 2, 1))
    schedule = NoiseSchedule.linear()
    times = time_grid(4, 500)
    first, second = (Transfer(each, schedule) for each in (whole, low_rank))
    assert first.error(first.spreads(times)) == pytest.approx(second.error(second.spreads(times)))
    grids = [gaussian_grid(each, schedule, n_steps=5, t_start=500) for each in (whole, low_rank)]
    np.testing.assert_array_equal(*grids)
