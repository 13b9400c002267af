"""DDIM with one mistake at a time. A faulty sampler is compared with each, to find out its mistake.

With one or two steps most solvers equal DDIM, so this also identifies the mistakes of solvers of higher order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sampling.verification.flows import ALPHA_BARS, LAST, Rows, alpha_bar, eps

T = LAST + 1


def ddim(
    x: Rows,
    times: Int[np.ndarray, "steps"],
    *,
    network: Callable[[Rows, Int[np.ndarray, "1"]], Rows] = eps,
    previous: Callable[[int, int], int] | None = None,
    table: Callable[[int], Float[np.ndarray, ""]] = alpha_bar,
    called: Callable[[int], int] = lambda t: t,
    end: float = 1.0,
    clip: float = np.inf,
    scale: Callable[[float], float] = lambda ab: 1.0,
) -> Rows:
    """DDIM, Song et al. (2021), equation 12. Every option except `network` is a way to make a mistake.

    Args:
      network: the noise prediction.
      previous: called as previous(t, n) for a grid of n times; returns the end of the step from t. By default this is
        the next time of the grid.
      table: returns alpha_bar of t.
      called: returns the time that the network is given at t.
      end: alpha_bar at the end of the last step.
      clip: the predicted x_0 is clipped to [-clip, clip].
      scale: returns a factor of the starting x, given its alpha_bar.
    """
    x = x * scale(table(times[0]))
    for i, t in enumerate(times):
        s = previous(t, len(times)) if previous else (*times, -1)[i + 1]
        ab = table(t)
        next_ab = table(s) if s >= 0 else end
        noise = network(x, np.array([called(t)]))
        x0 = np.clip((x - np.sqrt(1 - ab) * noise) / np.sqrt(ab), -clip, clip)
        x = np.sqrt(next_ab) * x0 + np.sqrt(1 - next_ab) * noise
    return x


def _limited(t: int) -> int:
    return min(max(t, 0), LAST)


MISTAKES: dict[str, dict[str, Any]] = {
    "the previous time is taken as t - T // n": {"previous": lambda t, n: t - T // n},
    "the previous time is taken as t - 1": {"previous": lambda t, n: t - 1},
    "alpha_bar is read one time too late, at t + 1": {"table": lambda t: alpha_bar(_limited(t + 1))},
    "alpha_bar is read one time too early, at t - 1": {"table": lambda t: alpha_bar(t - 1)},
    "the network is called at t + 1": {"called": lambda t: _limited(t + 1)},
    "the network is called at t - 1": {"called": lambda t: _limited(t - 1)},
    "the last step ends at alpha_bars[0] instead of 1, so x is returned with the noise of t = 0": {
        "end": ALPHA_BARS[0]
    },
    "the last step reads alpha_bars[-1], the last entry of the table, for t = -1": {"end": ALPHA_BARS[-1]},
    "the predicted x_0 is clipped to [-1, 1]": {"clip": 1.0},
    "the start is divided by the signal, sqrt(alpha_bar)": {"scale": lambda ab: ab**-0.5},
    "the start is multiplied by the signal, sqrt(alpha_bar)": {"scale": lambda ab: ab**0.5},
    "the start is multiplied by sigma / signal": {"scale": lambda ab: ((1 - ab) / ab) ** 0.5},
}
