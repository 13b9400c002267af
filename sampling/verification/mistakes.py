"""DDIM with one mistake at a time. The mistake of a faulty sampler is identified by comparison with these variants.

With one or two steps, most solvers of higher order equal DDIM. So the comparison also identifies their mistakes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sampling.verification.flows import ALPHA_BARS, LAST, Rows, alpha_bar, eps

T = LAST + 1

Step = Callable[[Rows, Rows, Any], Rows]
Table = Callable[[int], Float[np.ndarray, ""]]


def predicted(x: Rows, noise: Rows, ab: Any) -> Rows:
    """Returns x_0 for the predicted noise in x at alpha_bar = ab."""
    return (x - np.sqrt(1 - ab) * noise) / np.sqrt(ab)


def noised(x0: Rows, noise: Rows, ab: Any) -> Rows:
    """Adds noise to x_0, at alpha_bar = ab."""
    return np.sqrt(ab) * x0 + np.sqrt(1 - ab) * noise


def ddim(
    x: Rows,
    times: Int[np.ndarray, "steps"],
    *,
    network: Callable[[Rows, Int[np.ndarray, "1"]], Rows] = eps,
    previous: Callable[[int, int], int] | None = None,
    table: Table = alpha_bar,
    next_table: Table | None = None,
    called: Callable[[int], int] = lambda t: t,
    end: float = 1.0,
    predicted: Step = predicted,
    noised: Step = noised,
    scale: Callable[[float], float] = lambda ab: 1.0,
) -> Rows:
    """DDIM, Song et al. (2021), equation 12. Every option except `network` is a way to make a mistake.

    Args:
      network: the noise prediction.
      previous: called as previous(t, n) for a grid of n times; returns the end of the step from t. By default this is
        the next time of the grid.
      table: returns alpha_bar of t at the beginning of a step.
      next_table: returns alpha_bar of t at the end of a step. By default this is `table`.
      called: returns the time that the network is given at t.
      end: alpha_bar at the end of the last step.
      predicted: replaces the function `predicted`.
      noised: replaces the function `noised`.
      scale: returns a factor of the starting x, given its alpha_bar.
    """
    x = x * scale(table(times[0]))
    for i, t in enumerate(times):
        s = previous(t, len(times)) if previous else (*times, -1)[i + 1]
        noise = network(x, np.array([called(t)]))
        next_ab = (next_table or table)(s) if s >= 0 else end
        x = noised(predicted(x, noise, table(t)), noise, next_ab)
    return x


def _later(t: int) -> Float[np.ndarray, ""]:
    return alpha_bar(min(t + 1, LAST))


def _earlier(t: int) -> Float[np.ndarray, ""]:
    return alpha_bar(t - 1)


def _alpha(t: int) -> Float[np.ndarray, ""]:
    return alpha_bar(t) / alpha_bar(t - 1)


MISTAKES: dict[str, dict[str, Any]] = {
    "the previous time is taken as t - T // n": {"previous": lambda t, n: t - T // n},
    "the previous time is taken as t - 1000 // n": {"previous": lambda t, n: t - 1000 // n},
    "the previous time is taken as t - 1": {"previous": lambda t, n: t - 1},
    "alpha_bar is read one time too late, at t + 1": {"table": _later},
    "alpha_bar is read one time too late, at t + 1, and the last step ends at alpha_bars[0]": {
        "table": _later,
        "end": ALPHA_BARS[0],
    },
    "alpha_bar is read one time too early, at t - 1": {"table": _earlier},
    "alpha_bar at the beginning of a step is read at t + 1": {"table": _later, "next_table": alpha_bar},
    "alpha_bar at the beginning of a step is read at t - 1": {"table": _earlier, "next_table": alpha_bar},
    "alpha_bar at the end of a step is read at t + 1": {"next_table": _later},
    "alpha_bar at the end of a step is read at t - 1": {"next_table": _earlier},
    "alpha stands for alpha_bar": {"table": _alpha},
    "sqrt(alpha_bar) stands for alpha_bar": {"table": lambda t: np.sqrt(alpha_bar(t))},
    "alpha_bar**2 stands for alpha_bar": {"table": lambda t: alpha_bar(t) ** 2},
    "the network is called at t + 1": {"called": lambda t: min(t + 1, LAST)},
    "the network is called at t - 1": {"called": lambda t: max(t - 1, 0)},
    "the last step ends at alpha_bars[0] instead of 1, so x is returned with the noise of t = 0": {
        "end": ALPHA_BARS[0]
    },
    "the last step reads alpha_bars[-1], the last entry of the table, for t = -1": {"end": ALPHA_BARS[-1]},
    "the noise has the wrong sign where x_0 is predicted": {"predicted": lambda x, noise, ab: predicted(x, -noise, ab)},
    "the noise has the wrong sign where it is added to x_0": {"noised": lambda x0, noise, ab: noised(x0, -noise, ab)},
    "the noise has the wrong sign": {
        "predicted": lambda x, noise, ab: predicted(x, -noise, ab),
        "noised": lambda x0, noise, ab: noised(x0, -noise, ab),
    },
    "1 - alpha_bar stands for its root where x_0 is predicted": {
        "predicted": lambda x, noise, ab: (x - (1 - ab) * noise) / np.sqrt(ab)
    },
    "1 - alpha_bar stands for its root where noise is added to x_0": {
        "noised": lambda x0, noise, ab: np.sqrt(ab) * x0 + (1 - ab) * noise
    },
    "alpha_bar stands for its root where x_0 is predicted": {
        "predicted": lambda x, noise, ab: (x - np.sqrt(1 - ab) * noise) / ab
    },
    "alpha_bar stands for its root where noise is added to x_0": {
        "noised": lambda x0, noise, ab: ab * x0 + np.sqrt(1 - ab) * noise
    },
    "alpha_bar and 1 - alpha_bar stand for their roots where noise is added to x_0": {
        "noised": lambda x0, noise, ab: ab * x0 + (1 - ab) * noise
    },
    "x - sigma noise is not divided by the signal where x_0 is predicted": {
        "predicted": lambda x, noise, ab: x - np.sqrt(1 - ab) * noise
    },
    "the predicted x_0 is clipped to [-1, 1]": {
        "predicted": lambda x, noise, ab: np.clip(predicted(x, noise, ab), -1, 1)
    },
    "the start is divided by the signal, sqrt(alpha_bar)": {"scale": lambda ab: ab**-0.5},
    "the start is multiplied by the signal, sqrt(alpha_bar)": {"scale": lambda ab: ab**0.5},
    "the start is multiplied by sigma / signal": {"scale": lambda ab: ((1 - ab) / ab) ** 0.5},
}
