"""The grid from trajectories of a network, for an exact mixture and for made-up errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.diffusion import Denoiser, NoiseSchedule
from sampling import sample
from sampling.auto_grid import cheapest_grid, fine_times, least_start, walk
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid
from symmetry.exact import Mixture

SCHEDULE = NoiseSchedule.linear()


@pytest.fixture
def gaussian():
    values = np.array([4.0, 1.0, 0.25])
    return DataGaussian(np.array([0.5, 0.0, -0.5]), np.eye(3), values, residual_variance=0.0, image_shape=(1, 3, 1))


def exact(model):
    return Denoiser(lambda x, t: model.eps(x, SCHEDULE.alpha_bar(t)), SCHEDULE)


def test_walk_ends_where_the_flow_ends_and_its_steps_are_of_second_order(gaussian, rng):
    """Catches a slope at the wrong time or with the wrong sign. For Gaussian data the flow has a closed form."""
    with jax.enable_x64(True):
        noise = jnp.asarray(rng.standard_normal((8, 1, 3, 1)))
        x = gaussian.sample(noise, SCHEDULE.alpha_bar(600))
        end = gaussian.sample(noise, 1.0)
        missed = [
            np.abs(
                walk(
                    exact(gaussian),
                    gaussian,
                    x,
                    times=time_grid(n, 600, spacing="logsnr", schedule=SCHEDULE),
                    num_measured=8,
                )[0]
                - end
            ).max()
            for n in (50, 100)
        ]
    assert missed[0] < 0.03
    assert missed[0] / missed[1] > 3.3


def test_errors_are_those_of_ddims_steps(gaussian, rng):
    """Catches an error measured from the wrong point or at the wrong time. Two errors are computed independently."""
    with jax.enable_x64(True):
        noise = jnp.asarray(rng.standard_normal((5, 1, 3, 1)))
        times = np.array([900, 500, 100])
        x0, errors = walk(exact(gaussian), gaussian, noise, times=times, num_measured=2)
        y = {900: noise / SCHEDULE.signal(900)}
        v = {t: SCHEDULE.sigma(t) / SCHEDULE.signal(t) for t in (900, 500, 100)}
        slopes = {900: gaussian.eps(noise, SCHEDULE.alpha_bar(900))}
        y[500] = y[900] + (v[500] - v[900]) * slopes[900]
        slopes[500] = gaussian.eps(SCHEDULE.signal(500) * y[500], SCHEDULE.alpha_bar(500))
        bend = (v[100] - v[500]) / (2 * (v[500] - v[900])) * (slopes[500] - slopes[900])
        y[100] = y[500] + (v[100] - v[500]) * (slopes[500] + bend)
        missed = y[900] + (v[100] - v[900]) * slopes[900] - y[100]
        shares = np.array([4.0, 1.0, 0.25]) / (np.array([4.0, 1.0, 0.25]) + v[100] ** 2)
        expected = (missed**2 * shares.reshape(1, 3, 1)).sum(axis=(1, 2, 3))[:2].mean()
        clean = ((y[900] - v[900] * slopes[900] - x0) ** 2).sum(axis=(1, 2, 3))[:2].mean()
    assert errors.shape == (3, 4)
    assert errors[0, 2] == pytest.approx(float(expected), rel=1e-9)
    assert errors[0, 3] == pytest.approx(float(clean), rel=1e-9)  # no later step reduces this error
    assert np.isinf(np.asarray(errors)[np.tril_indices(3)]).all()
    assert errors[0, 1] == pytest.approx(0, abs=1e-9)  # the first step is a step of DDIM
    assert errors[2, 3] > 1e-8


def test_no_other_path_is_cheaper(rng):
    """Catches a minimum over the wrong index, or a step that is not added. All paths are tried."""
    times = np.array([90, 70, 40, 20, 10, 5, 0])
    errors = np.where(np.tri(7, 8, 0, bool), np.inf, rng.random((7, 8)))

    def cost(path):
        hops = [errors[i, j] for i, j in itertools.pairwise([*path, 7])]
        return sum(hops)

    for n_steps, first in ((1, 0), (3, 0), (3, 2), (4, 3), (5, 1)):
        paths = [(first, *rest) for rest in itertools.combinations(range(first + 1, 7), n_steps - 1)]
        best = min(paths, key=cost)
        np.testing.assert_array_equal(
            cheapest_grid(errors, times, n_steps=n_steps, t_start=int(times[first])), times[list(best)]
        )


def test_the_start_replaces_the_nearest_time(rng):
    """Catches a grid that does not begin at the given start, or that ascends, for all starts and numbers of steps."""
    times = fine_times(1000)
    assert times[0] == 999
    assert times[-1] == 0
    errors = np.where(np.tri(30, 31, 0, bool), np.inf, rng.random((30, 31)))
    for n_steps in (1, 2, 7, 15):
        for t_start in (least_start(times, n_steps), 250, 333, 999):
            grid = cheapest_grid(errors, times, n_steps=n_steps, t_start=max(t_start, least_start(times, n_steps)))
            assert len(grid) == n_steps
            assert (np.diff(grid) < 0).all()
            assert grid[0] == max(t_start, least_start(times, n_steps))
            assert grid[-1] >= 0


@pytest.mark.parametrize("num_timesteps", [2, 10, 40, 100, 1000])
def test_fine_times_descend(num_timesteps):
    """Catches times that repeat near 0, where squares round to the same integer."""
    times = fine_times(num_timesteps)
    assert (np.diff(times) < 0).all()
    assert (times[0], times[-1]) == (num_timesteps - 1, 0)


def test_chosen_grid_beats_equal_steps_on_a_mixture(rng):
    """Catches a grid that is no better than equal steps. DDIM on a mixture is compared with the fine trajectory."""
    means = np.array([[1.0, 0.3, -0.2], [-1.0, 0.1, 0.4]])
    variances = np.array([0.05, 0.2])
    weights = np.array([0.4, 0.6])
    mixture = Mixture(means, variances, weights)
    mean = weights @ means
    values, vectors = np.linalg.eigh((means - mean).T * weights @ (means - mean) + weights @ variances * np.eye(3))
    gaussian = DataGaussian(mean, vectors, values, residual_variance=0.0, image_shape=(1, 3, 1))
    denoiser = exact(mixture)
    times = fine_times(1000)
    with jax.enable_x64(True):
        noise = jnp.asarray(rng.standard_normal((64, 1, 3, 1)))
        x0, errors = walk(denoiser, gaussian, noise, times=times, num_measured=32)
        grids = cheapest_grid(np.asarray(errors), times, n_steps=6, t_start=999), time_grid(6, 999)
        chosen, equal = (jnp.mean((sample("ddim", denoiser, noise, grid) - x0) ** 2) for grid in grids)
    assert chosen < 0.8 * equal
