"""One run of a sampler of any library on the exact data, and what a sampler is.

A sampler is a function (eps_fn, alpha_bars, start, times) -> x_0:

  eps_fn(x, t): the noise predicted in x [batch, 1, 2, 4] at t, a number or one per image; t is real and may lie between
    whole numbers.
  alpha_bars: [T], the table of t = 0 .. T-1.
  start: x_t at t = times[0].
  times: [n], whole numbers, descending. The step from the last of them goes to clean data.

If the second parameter is named `sigmas`, everything is in that scale: sigmas is the table of sqrt((1 - ab) / ab), an
image is x_0 + sigma noise, and eps_fn(x, sigma) takes the real sigma in place of t.

The arrays are NumPy's, or those of JAX or PyTorch if `start` is annotated with `jax.Array` or `torch.Tensor`. They are
in float64. Further parameters need defaults. What a sampler claims is in its attributes (`sampler.order = 2`): see
Claims.
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

SHAPE = (-1, 1, 2, DIM // 2)  # of a batch of images
SIGMAS = np.exp(-LOG_ALPHA_BARS / 2) * np.sqrt(-np.expm1(LOG_ALPHA_BARS))  # of t = -1 .. LAST


class Claims(NamedTuple):
    """What a sampler says of itself, as attributes of the function.

    Attributes:
      order: of convergence, at least; None for an adaptive sampler, which must be accurate to 1e-4.
      nfe: number of network calls for n times; None: not claimed.
      stochastic: whether it draws noise. Its images are then not compared one by one; their moments are.
    """

    order: int | None = 1
    nfe: Callable[[int], int] | None = None
    stochastic: bool = False


def _parameters(sampler: Sampler) -> list[inspect.Parameter]:
    """The parameters of a sampler. Raises UserError if it cannot be called with four arguments."""
    try:
        signature = inspect.signature(sampler, eval_str=True)
    except (NameError, SyntaxError):  # an annotation in quotes that means nothing outside type checkers
        signature = inspect.signature(sampler)
    try:
        signature.bind("eps_fn", "alpha_bars", "start", "times")
    except TypeError as error:
        raise UserError(
            f"{sampler!r} has the parameters {signature}; a sampler takes (eps_fn, alpha_bars, start, times)"
        ) from error
    return list(signature.parameters.values())


def same_time(t: float, other: float) -> bool:
    """Whether two times agree but for rounding, which is larger where a float32 sigma stands for the time."""
    return abs(t - other) < 0.02


class Trial:
    """Runs a sampler on the exact data and records the times of its network calls.

    Attributes:
      claims: what the sampler says of itself.
      called: the times of the network calls of the last run.
      given: what the network was given there: the times, or the sigmas of a sampler that takes sigmas.
      seen: what the network was called with at the last time of that run: x_t, on the variance-preserving path.
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
        """The sampler's x_0 for rows x at times[0]."""
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
        """`seen`. Raises ValueError if the network was not called at the last time."""
        if self.seen is None:
            raise ValueError("the network is not called at the last time of the grid")
        return self.seen

    def eps_fn(self, x: Any, t: Any) -> Any:
        """The exact noise prediction, as the kind of array that x is. t is sigma if the sampler takes sigmas."""
        return arrays.on_host(self._eps, x, t)

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
