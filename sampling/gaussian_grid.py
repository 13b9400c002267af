"""The time grid with the smallest error of DDIM on the data's Gaussian (sampling.spacing="gaussian").

The method follows Benita et al. (2025, arXiv 2502.00180). For Gaussian data, they choose the noise levels that minimise
the distance between the distribution of DDIM's images and the distribution of the data. On Gaussian data DDIM is
linear. Along an eigenvector of variance L, a step from t to s multiplies the distance from the mean by

    (signal_s signal_t L + sigma_s sigma_t) / (signal_t^2 L + sigma_t^2),

and the step makes no error in the mean. So with any grid, the images are Gaussian and have the data's mean and
eigenvectors. Their squared 2-Wasserstein distance to the data is the sum of (spread - sqrt(L))^2 over the eigenvectors,
where spread is the standard deviation of the images along the eigenvector. The computation of the grid needs no network
calls. The grid depends on the network only through the noise schedule.
"""

import numpy as np
from jaxtyping import Float, Int, Int32

from core.schedules import NoiseSchedule
from sampling.late_start import DataGaussian
from sampling.time_grid import time_grid

FIRST_GUESSES = ("linear", "quadratic", "trailing")  # the spacings of the grids from which the search starts


class Transfer:
    """DDIM on the data's Gaussian: the spread of its images along every eigenvector."""

    def __init__(self, gaussian: DataGaussian, schedule: NoiseSchedule):
        logs = np.asarray(schedule.log_alpha_bars, np.float64)  # of t = -1, 0, ..
        outside = len(gaussian.mean) - len(gaussian.eigenvalues)
        self.variances = np.append(np.asarray(gaussian.eigenvalues, np.float64), np.float64(gaussian.residual_variance))
        self.counts = np.append(np.ones(len(gaussian.eigenvalues)), outside)
        self.signals = np.exp(logs / 2)[:, None]
        self.sigmas = np.sqrt(-np.expm1(logs))[:, None]

    def noised(self, t: Int[np.ndarray, "times"] | int) -> Float[np.ndarray, "*times variances"]:
        """The variances of x_t along the eigenvectors."""
        return self.signals[np.add(t, 1)] ** 2 * self.variances + self.sigmas[np.add(t, 1)] ** 2

    def factor(
        self, t: Int[np.ndarray, "times"] | int, s: Int[np.ndarray, "times"] | int
    ) -> Float[np.ndarray, "*times variances"]:
        """The factor by which a step from t to s multiplies the distance from the mean. t or s may be an array."""
        signals = self.signals[np.add(t, 1)] * self.signals[np.add(s, 1)]
        sigmas = self.sigmas[np.add(t, 1)] * self.sigmas[np.add(s, 1)]
        return (signals * self.variances + sigmas) / self.noised(t)

    def spreads(self, times: Int[np.ndarray, "steps"]) -> Float[np.ndarray, "variances"]:
        """The standard deviations, along the eigenvectors, of DDIM's images with these times from the exact start."""
        ends = np.append(times[1:], -1)
        return np.sqrt(self.noised(int(times[0]))) * self.factor(times, ends).prod(axis=0)

    def error(self, spreads: Float[np.ndarray, "*grids variances"]) -> Float[np.ndarray, "*grids"]:
        """The squared 2-Wasserstein distance between the images and the data."""
        return ((spreads - np.sqrt(self.variances)) ** 2 * self.counts).sum(axis=-1)


def gaussian_grid(
    gaussian: DataGaussian, schedule: NoiseSchedule, *, n_steps: int, t_start: int
) -> Int32[np.ndarray, "{n_steps}"]:
    """Returns n_steps times, descending from t_start, that minimise `Transfer.error`.

    From each of FIRST_GUESSES, every time is moved to its best value between its neighbours, until no time moves. The
    best of these grids is returned. Raises ValueError for more steps than there are integers from 0 to t_start.
    """
    transfer = Transfer(gaussian, schedule)
    found = []
    for spacing in FIRST_GUESSES:
        times = _descended(transfer, time_grid(n_steps, t_start, spacing))
        found.append((float(transfer.error(transfer.spreads(times))), times.tolist()))
    return np.array(min(found)[1], np.int32)


def _descended(transfer: Transfer, times: Int32[np.ndarray, "steps"]) -> Int32[np.ndarray, "steps"]:
    """Moves single times of the grid until no such move reduces the error."""
    times = times.copy()
    moved = True
    while moved:
        moved = False
        for i in range(1, len(times)):
            best = _best_time(transfer, times, i)
            moved = moved or best != times[i]
            times[i] = best
    return times


def _best_time(transfer: Transfer, times: Int32[np.ndarray, "steps"], i: int) -> int:
    """Returns the best value of the i-th time, or its present value if that is equally good."""
    ends = np.append(times, -1)
    places = np.arange(ends[i + 1] + 1, ends[i - 1])
    rest = np.sqrt(transfer.noised(int(times[0])))
    for k in range(len(times)):
        if k not in (i - 1, i):
            rest = rest * transfer.factor(int(ends[k]), int(ends[k + 1]))
    steps = transfer.factor(int(ends[i - 1]), places) * transfer.factor(places, int(ends[i + 1]))
    errors = transfer.error(rest * steps)
    present = int(times[i] - places[0])
    best = int(errors.argmin())
    return int(places[best if errors[best] < errors[present] * (1 - 1e-12) else present])
