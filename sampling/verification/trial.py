"""Runs a sampler of any library on data whose probability flow is known exactly.

A sampler is a function (eps_fn, alpha_bars, start, times) -> x_0:

  eps_fn(x, t): returns the noise predicted in x [batch, 1, 2, 4] at t, a number or one per image. t need not be an
    integer.
  alpha_bars: [T], alpha_bar of t = 0 .. T-1.
  start: x_t at t = times[0].
  times: [n], integers, descending. After the last of them, the sampler takes one more step, to clean data.

If the second parameter is named `sigmas`, the sampler receives the table of sigma = sqrt((1 - alpha_bar) / alpha_bar)
instead of alpha_bar. Then a noised image is x_0 + sigma noise, and eps_fn(x, sigma) takes sigma instead of t.

All arrays are float64 arrays of NumPy, or of JAX or PyTorch if `start` is annotated with `jax.Array` or `torch.Tensor`.
If the function has more than four parameters, the others need defaults. The function claims properties in the form of
attributes, for example `sampler.order = 2` (see Claims).
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from core.errors import UserError
from sampling.verification import arrays
from sampling.verification.flows import ALPHA_BARS, DIM, LAST, LOG_ALPHA_BARS, Rows, alpha_bar, eps

Sampler = Callable[..., Any]

SHAPE = (-1, 1, 2, DIM // 2)  # shape of a batch of images
SIGMAS = np.exp(-LOG_ALPHA_BARS / 2) * np.sqrt(-np.expm1(LOG_ALPHA_BARS))  # noise / signal at t = -1 .. LAST


class Claims(NamedTuple):
    """The properties that a sampler claims to have, as attributes of the function.

    Attributes:
      order: the smallest order of convergence; None for an adaptive sampler, which must be accurate to 1e-4.
      nfe: returns the number of network calls for n times; None if the sampler claims no number.
      stochastic: whether the sampler draws noise. If so, moments of its images are compared instead of single images.
    """

    order: int | None = 1
    nfe: Callable[[int], int] | None = None
    stochastic: bool = False


def _parameters(sampler: Sampler) -> list[inspect.Parameter]:
    """Returns the parameters of a sampler. Raises UserError if it cannot be called with four arguments."""
    try:
        signature = inspect.signature(sampler, eval_str=True)
    except (NameError, SyntaxError):  # an annotation in quotes that only type checkers can evaluate
        signature = inspect.signature(sampler)
    try:
        signature.bind("eps_fn", "alpha_bars", "start", "times")
    except TypeError as error:
        raise UserError(
            f"{sampler!r} has the parameters {signature}; a sampler takes (eps_fn, alpha_bars, start, times)"
        ) from error
    return list(signature.parameters.values())


def same_time(t: float, other: float) -> bool:
    """Whether two times are equal up to rounding. The tolerance allows for times computed from a float32 sigma."""
    return abs(t - other) < 0.02


class Trial:
    """Runs a sampler on the exact data and records the times of its network calls.

    Attributes:
      claims: the properties that the sampler claims.
      called: the times of the network calls of the last run.
      given: the times of these calls as the network received them: times, or sigmas if the sampler takes sigmas.
      seen: the network's input x_t in its call at the last time of the grid in the last run, scaled to the
        variance-preserving process; None if there was no such call.
    """

    def __init__(self, sampler: Sampler):
        parameters = _parameters(sampler)
        self.sampler = sampler
        self.takes_sigmas = parameters[1].name == "sigmas"
        self.library = arrays.library_of(parameters[2].annotation)
        self.claims = Claims(**{name: getattr(sampler, name, Claims._field_defaults[name]) for name in Claims._fields})
        self.called: list[float] = []
        self.given: list[float] = []
        self.seen: Rows | None = None
        self._last_time = 0.0

    def run(self, x: Rows, times: Int[np.ndarray, "steps"]) -> Rows:
        """Runs the sampler from the rows x at times[0], and returns its x_0."""
        self.called, self.given, self.seen, self._last_time = [], [], None, float(times[-1])
        table = SIGMAS[1:] if self.takes_sigmas else ALPHA_BARS
        scale = np.sqrt(alpha_bar(times[0])) if self.takes_sigmas else 1
        with arrays.float64(self.library):
            given = (table, (x / scale).reshape(SHAPE), times)
            x0 = self.sampler(self.eps_fn, *(arrays.to_library(self.library, array) for array in given))
            if isinstance(x0, tuple | list):
                raise ValueError(f"the result is a {type(x0).__name__}; return the images alone")
            x0 = arrays.to_numpy(x0).astype(np.float64)
        if x0.shape != given[1].shape:
            raise ValueError(f"the result has shape {list(x0.shape)} for a start of shape {list(given[1].shape)}")
        if not np.isfinite(x0).all():
            raise ValueError("the result holds NaN or infinity")
        return x0.reshape(-1, DIM)

    @property
    def last(self) -> Rows:
        """Returns `seen`. Raises ValueError if the network was not called at the last time."""
        if self.seen is None:
            raise ValueError("the network is not called at the last time of the grid")
        return self.seen

    def eps_fn(self, x: Any, t: Any) -> Any:
        """Returns the exact noise prediction, in the array library of x. t is sigma if the sampler takes sigmas."""
        return arrays.call_with_numpy(self._eps, x, t)

    def _eps(self, images: Any, t: Any) -> np.ndarray:
        images = np.asarray(images)
        x = images.reshape(-1, DIM).astype(np.float64)
        t = np.asarray(t, np.float64).ravel()
        self.given.append(float(t[0]))
        if self.takes_sigmas:
            t = np.interp(t, SIGMAS, np.arange(-1, LAST + 1))
            x = x * np.sqrt(alpha_bar(t))[:, None]
        self.called.append(float(t[0]))
        if same_time(t[0], self._last_time):
            self.seen = x
        return eps(x, t).reshape(images.shape).astype(images.dtype)
