"""Which of the trained times a sampler visits."""

import numpy as np


def linear(n_steps: int, t_start: int) -> np.ndarray:
    """Equal steps in t, truncated to integers: the paper's grid."""
    return np.linspace(0, t_start, n_steps).astype(np.int32)[::-1]


SPACINGS = {"linear": linear}


def time_grid(n_steps: int, t_start: int, spacing: str = "linear") -> np.ndarray:
    """int32 [n_steps], strictly descending from t_start to 0 (n_steps = 1: t_start alone).

    The step from the last time goes to t = -1, clean data. Raises ValueError where no such grid exists.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is not known; choose from {', '.join(SPACINGS)}")
    if not 1 <= n_steps <= t_start + 1:
        raise ValueError(f"n_steps={n_steps} must be from 1 to t_start + 1 = {t_start + 1}: every step has its own t")
    if n_steps == 1:
        return np.array([t_start], np.int32)
    return SPACINGS[spacing](n_steps, t_start)
