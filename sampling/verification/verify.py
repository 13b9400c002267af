"""Checks a sampler on data whose probability flow is known exactly, and reports the results.

`sampling.verification.trial` defines the signature of a sampler.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from core.errors import UserError
from core.imports import function_of
from sampling.verification.flows import (
    ALPHA_BARS,
    GAUSSIAN,
    HALVES,
    LAST,
    MIXTURE,
    Rows,
    alpha_bar,
    exact_end,
    predicted_x0,
    start,
)
from sampling.verification.mistakes import MISTAKES, ddim
from sampling.verification.trial import Sampler, Trial, same_time

# The prefix of --source, and the module that adapts samplers with this prefix. The function sampler_of(name) of that
# module returns a Sampler.
ADAPTERS = {
    "sampling": "sampling.verification.own",
    "diffusers": "examples.verify_diffusers",
    "k_diffusion": "examples.verify_k_diffusion",
}
LATE = 640  # the time at which a late start begins
STEPS = (8, 16, 32, 64)  # numbers of steps between the first and the last time, from which orders are measured
COUNT = 64  # number of images from which errors are measured
MANY = 4096  # number of images from which moments of stochastic samplers are measured
MISTAKES_CHECK = "known mistakes"
BATCH_CHECK = "repeated, other batch"
ALLOWANCE = 0.4  # a measured order may be lower than the claimed order by this much


class Finding(NamedTuple):
    """One line of the report.

    `passed` is None for a line that is only information. `fault` explains a failure in words, if the check can.
    """

    check: str
    passed: bool | None
    text: str
    fault: str | None = None


class Report(NamedTuple):
    """The findings of `verify`."""

    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether no check has failed."""
        return all(finding.passed is not False for finding in self.findings)

    @property
    def fault(self) -> str | None:
        """Explains the failures in words, or is None. A known mistake is preferred to the faults of other checks."""
        faults = [finding.fault for finding in self.findings if finding.passed is False and finding.fault]
        known = [f.fault for f in self.findings if f.check == MISTAKES_CHECK and f.fault]
        return next(iter(known + faults), None)

    @property
    def text(self) -> str:
        """Formats the report: a line for each check, a summary and, if checks failed, the suspected fault."""
        marks = {True: "passed", False: "FAILED", None: "-"}
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{f.check.ljust(width)}  {marks[f.passed].ljust(6)}  {f.text}" for f in self.findings]
        failed = sum(finding.passed is False for finding in self.findings)
        if not failed:
            return "\n".join([*lines, "all checks passed"])
        fault = self.fault or "none of the known mistakes"
        return "\n".join([*lines, f"{failed} of {len(lines)} checks failed", f"suspected fault: {fault}"])


def grid(first: int, steps: int) -> Int[np.ndarray, "steps+1"]:
    """Returns steps + 1 times in equal steps from `first` to 0. A sampler takes one more step, to clean data."""
    return np.linspace(first, 0, steps + 1).astype(int)


def errors(trial: Trial, times: Int[np.ndarray, "steps"]) -> dict[str, float]:
    """Returns the largest error at time 0, before the last step, for each half of the image.

    The halves have different distributions (see `flows`).
    """
    trial.run(start(times[0], COUNT), times)
    error = np.abs(trial.last - exact_end(times[0], COUNT))
    return {half: float(error[:, columns].max()) for half, columns in HALVES.items()}


# The checks


def check_calls(trial: Trial) -> Finding:
    """Checks the number of network calls, and that the network is called at the times of the grid."""
    counts, off = {}, None
    for n in (1, 2, 3, 5, 9):
        times = grid(LATE, n - 1) if n > 1 else np.array([LATE])
        trial.run(start(LATE, COUNT), times)
        counts[n] = len(trial.called)
        if off is None and not all(any(same_time(t, called) for called in trial.called) for t in times):
            off = f"; called at {_times(trial.called) or 'no time'} where the times are {_times(times)}"
    nfe = trial.claims.nfe
    wrong = {n for n in counts if nfe and nfe(n) != counts[n]}
    claim = f"; claimed {', '.join(str(nfe(n)) for n in counts)}" if wrong else ""
    text = f"{', '.join(map(str, counts.values()))} for {', '.join(map(str, counts))} times{claim}{off or ''}"
    return Finding("network calls", not wrong and not off, text, _fault_of_calls(trial) if off else None)


def _fault_of_calls(trial: Trial) -> str | None:
    """Explains why the network is called at times that are not in the grid. Returns None if no explanation fits."""
    times = grid(LATE, 4)
    trial.run(start(LAST, COUNT), grid(LAST, 4))
    elsewhere = trial.called
    trial.run(start(LATE, COUNT), times)
    called, given = np.array(trial.called), np.array(trial.given)
    if not len(called):
        return "the network is never called"
    if trial.takes_sigmas and set(given) <= set(times):
        return "the network is given times, where it takes sigmas"
    if len(called) > 1 and np.array_equal(called, elsewhere):
        return "the times are ignored: the sampler takes its own"
    if len(called) == len(times):
        if np.ptp(called - times) < 0.1:
            return f"the network is called at t {'+' if called[0] > times[0] else '-'} {abs(called[0] - times[0]):.3g}"
        if np.allclose(given / given[0], times / times[0]):
            return f"the network is called at {given[0] / times[0]:.3g} t"
        if np.allclose(called[:-1], times[1:], atol=0.1):
            return "the network is called at the time at the end of each step"
    if not same_time(called[-1], times[-1]) and all(any(same_time(t, c) for c in called) for t in times[:-1]):
        return "there is no step from the last time"
    return None


def check_one_step(trial: Trial) -> Finding:
    """Reports how much the result of one step differs from the x_0 predicted at the start.

    Most solvers return this x_0.
    """
    x = start(LATE, COUNT)
    error = np.abs(trial.run(x, np.array([LATE])) - predicted_x0(x, LATE)).max()
    return Finding("one step", None, f"differs from the x_0 predicted at t = {LATE} by {error:.1g}")


def check_order(trial: Trial, first: int) -> Finding:
    """Checks the order of convergence to the exact flow, from the time `first`."""
    name = f"order from t = {first}"
    if trial.claims.order is None:
        x0 = trial.run(start(first, COUNT), grid(first, 2))
        error = np.abs(x0 - predicted_x0(exact_end(first, COUNT), 0)).max()
        return Finding(name, error < 1e-4, f"adaptive; error {error:.1g}")
    found = [errors(trial, grid(first, steps)) for steps in STEPS]
    orders = _orders(found)
    passed = min(orders.values()) >= trial.claims.order - ALLOWANCE
    text = f"{_by_half(orders, '.1f')} (claimed {trial.claims.order}); errors {_by_half(found[0], '.1g')} in "
    return Finding(name, passed, text + f"{STEPS[0]} steps, {_by_half(found[-1], '.1g')} in {STEPS[-1]}")


def _orders(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns, for each half of the image, by how much log2(error) decreases between two grids.

    These are the last two grids with errors above 1e-5. Smaller errors can be rounding errors of float32.
    """
    usable = {half: [error[half] for error in found if error[half] > 1e-5] for half in HALVES}
    return {half: float(np.log2(e[-2] / e[-1])) if len(e) > 1 else np.inf for half, e in usable.items()}


def check_last_step(trial: Trial) -> Finding:
    """Checks that the sampler returns the x_0 predicted at the last network call.

    A faulty sampler may return x at that time, which still has noise.
    """
    x0 = trial.run(start(LATE, COUNT), grid(LATE, 8))
    x, ab = trial.last, ALPHA_BARS[0]
    flows = [
        flow.transported(x[:, columns], ab, 1.0)
        for flow, columns in zip((GAUSSIAN, MIXTURE), HALVES.values(), strict=True)
    ]
    ends = {
        "the x_0 predicted at the last time": predicted_x0(x, 0),
        "the exact end of the flow": np.concatenate(flows, axis=1),
        "x of the last time, with its noise": x,
        "x of the last time with its noise, divided by its signal": x / np.sqrt(ab),
    }
    distances = {text: np.sqrt(np.mean((x0 - end) ** 2)) for text, end in ends.items()}
    nearest = min(distances, key=distances.get)
    away = distances[nearest]
    text = f"returns {nearest}" if away < 1e-4 else f"is nearest to {nearest}, and differs from it by {away:.1g}"
    if "noise" in nearest:
        return Finding("last step", False, text, "the last step does not remove the noise of the last time")
    if away > np.sqrt(1 - ab) / 2:
        return Finding("last step", False, text, "the last step adds noise, or reads wrong noise levels")
    return Finding("last step", True if away < 1e-4 else None, text)


def check_moments(trial: Trial) -> Finding:
    """Checks the mean and the covariance of the Gaussian half of the images.

    The reference is the exact x_0 or the exact prediction of x_0 at the last time, whichever is nearer.
    """
    count, steps, allowed = (MANY, LATE // 4, 6 / np.sqrt(MANY)) if trial.claims.stochastic else (COUNT, STEPS[-1], 0.1)
    x = start(LATE, count)
    x0 = trial.run(x, grid(LATE, steps))[:, HALVES["Gaussian"]]
    x = x[:, HALVES["Gaussian"]]
    ab, end = alpha_bar(LATE), ALPHA_BARS[0]
    last = GAUSSIAN.transported(x, ab, end)
    predicted = (last - np.sqrt(1 - end) * GAUSSIAN.eps(last, end)) / np.sqrt(end)
    ends = [predicted, GAUSSIAN.transported(x, ab, 1.0)]
    mean, covariance = min((_moment_errors(x0, exact) for exact in ends), key=max)
    text = f"mean wrong by {mean:.1g}, covariance by {covariance:.1g} of the data's spread, in {steps + 1} steps"
    return Finding("mean and covariance", max(mean, covariance) < allowed, text)


def _moment_errors(x0: Rows, exact: Rows) -> tuple[float, float]:
    """Returns the largest errors of the mean and the covariance, in units of the exact standard deviations."""
    spread = exact.std(axis=0)
    mean = np.abs((x0.mean(axis=0) - exact.mean(axis=0)) / spread).max()
    return mean, np.abs((np.cov(x0.T) - np.cov(exact.T)) / np.outer(spread, spread)).max()


def check_batch(trial: Trial) -> Finding:
    """Checks that a second run gives the same images, and that an image does not depend on the rest of its batch."""
    x, times, picked = start(LATE, COUNT), grid(LATE, 4), [5, 3, 1]
    together = trial.run(x, times)
    again = np.abs(trial.run(x, times) - together).max()
    text = f"differs by {again:.1g} in a second run"
    if trial.claims.stochastic:
        return Finding(BATCH_CHECK, None, text)
    few = trial.run(x[picked], times)
    alone = np.abs(few - together[picked]).max()
    fault = "an image depends on the others of its batch, or on its place there"
    if np.array_equal(few, together[: len(few)]):
        fault = "the start is ignored"
    if again >= 1e-5:
        fault = "a second run gives other images: noise is drawn from a state outside the sampler"
    return Finding(BATCH_CHECK, max(again, alone) < 1e-5, f"{text}, and by {alone:.1g} in another batch", fault)


def check_two_steps(trial: Trial) -> Finding:
    """Reports how much the result of two steps differs from DDIM's.

    With two steps, most solvers equal DDIM, whatever their order.
    """
    x, times = start(LATE, COUNT), grid(LATE, 1)
    return Finding("two steps", None, f"differs from DDIM by {np.abs(trial.run(x, times) - ddim(x, times)).max():.1g}")


def check_mistakes(trial: Trial) -> Finding:
    """Checks that the result does not equal the result of DDIM with one of MISTAKES.

    Most mistakes change the result less than the discretisation errors of DDIM, so the other checks may not find them.
    A grid of five times identifies the mistakes of first-order samplers. On a grid of two times, most solvers of higher
    order equal DDIM. So that grid identifies the mistakes of these solvers.
    """
    for steps in (4, 1):
        times = grid(LATE, steps)
        x0 = trial.run(start(LATE, COUNT), times)
        away = np.abs(x0 - ddim(start(LATE, COUNT), times)).max()
        if away < 1e-5 and steps > 1 and trial.claims.order > 1:
            fault = f"all steps are those of DDIM, which has order 1; claimed {trial.claims.order}"
            return Finding(MISTAKES_CHECK, False, fault, fault)
        for text, wrong in _mistaken(steps).items():
            near = np.abs(x0 - wrong).max()
            if near < 0.01 * away and away > 1e-5:
                fault = f"{text} (differs from DDIM by {away:.1g}, from DDIM with this mistake by {near:.1g})"
                return Finding(MISTAKES_CHECK, False, fault, fault)
    return Finding(MISTAKES_CHECK, True, f"differs from DDIM with any of {len(MISTAKES)} mistakes")


@functools.cache
def _mistaken(steps: int) -> dict[str, Rows]:
    """Returns the results of DDIM with each of MISTAKES, in this number of steps from LATE."""
    return {text: ddim(start(LATE, COUNT), grid(LATE, steps), **options) for text, options in MISTAKES.items()}


class Check(NamedTuple):
    """A row of CHECKS: the check, and whether it also applies to stochastic and to adaptive samplers."""

    run: Callable[[Trial], Finding]
    stochastic: bool = False
    adaptive: bool = False


CHECKS = {
    "network calls": Check(check_calls, stochastic=True),
    "one step": Check(check_one_step),
    "two steps": Check(check_two_steps),
    f"order from t = {LAST}": Check(lambda trial: check_order(trial, LAST), adaptive=True),
    f"order from t = {LATE}": Check(lambda trial: check_order(trial, LATE), adaptive=True),
    "last step": Check(check_last_step, stochastic=True),
    "mean and covariance": Check(check_moments, stochastic=True, adaptive=True),
    BATCH_CHECK: Check(check_batch, stochastic=True, adaptive=True),
    MISTAKES_CHECK: Check(check_mistakes),
}


def verify(sampler: Sampler) -> Report:
    """Runs all checks that apply to a sampler (see `sampling.verification.trial`).

    A check fails if the sampler raises an error. For a sampler in NumPy, this takes about a second.

    Raises UserError if the sampler does not take four arguments.
    """
    trial = Trial(sampler)
    claims = trial.claims
    return Report(
        [
            _attempt(name, check, trial)
            for name, check in CHECKS.items()
            if (check.stochastic or not claims.stochastic) and (check.adaptive or claims.order is not None)
        ]
    )


def _attempt(name: str, check: Check, trial: Trial) -> Finding:
    try:
        finding = check.run(trial)
    except Exception as error:  # a sampler of a user can raise anything
        lines = str(error).splitlines() or [""]
        text = f"raised {type(error).__name__}: {lines[0]}"
        return Finding(name, False, text, text)
    return finding._replace(passed=None if finding.passed is None else bool(finding.passed))


def sampler_of(source: str) -> Sampler:
    """Imports the sampler that --source names as module:function. Raises UserError if it cannot be imported.

    sampling:NAME is one of `sampling.SAMPLERS`. diffusers:CLASS and k_diffusion:NAME are adapted by modules in
    examples/.
    """
    module, _, name = source.partition(":")
    if module not in ADAPTERS:
        return function_of(source, "--source")
    try:
        adapter = importlib.import_module(ADAPTERS[module])
    except ImportError as error:
        extra = " k-diffusion" if module == "k_diffusion" else ""
        raise UserError(f"--source={source}: {error}; pip install -r requirements-diffusers.txt{extra}") from error
    return adapter.sampler_of(name)


def _by_half(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{value:{form}} ({half})" for half, value in values.items())


def _times(times: Any) -> str:
    return " ".join(f"{t:.4g}" for t in times)
