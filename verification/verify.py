"""verify(sampler): a report on what a sampler does, measured on data whose probability flow is known exactly.

`verification.trial` says what a sampler is.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from core.imports import function_of
from verification.flows import ALPHA_BARS, HALVES, LAST, exact_end, predicted_x0, start
from verification.mistakes import MISTAKES, ddim
from verification.trial import Sampler, Trial

ADAPTERS = {  # modules whose samplers have other signatures; an adapter's sampler_of(name) returns a Sampler
    "sampling": "verification.own",
    "diffusers": "examples.verify_diffusers",
    "k_diffusion": "examples.verify_k_diffusion",
}
LATE = 640  # the time of the late start
STEPS = (8, 16, 32, 64)  # steps between the first and the last time, for orders
COUNT = 64  # images, for errors
MANY = 8192  # images, for moments of stochastic samplers
ALLOWANCE = 0.4  # by which a measured order may be lower than the claim


class Finding(NamedTuple):
    """One line of the report; passed is None if there is nothing to pass."""

    check: str
    passed: bool | None
    text: str


class Report(NamedTuple):
    """What `verify` found. `text` has the table and the suspected fault."""

    findings: list[Finding]
    fault: str | None

    @property
    def passed(self) -> bool:
        """Whether the sampler does all that it claims."""
        return all(finding.passed is not False for finding in self.findings)

    @property
    def text(self) -> str:
        """The report in words."""
        marks = {True: "passed", False: "FAILED", None: "-"}
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{f.check.ljust(width)}  {marks[f.passed].ljust(6)}  {f.text}" for f in self.findings]
        failed = sum(finding.passed is False for finding in self.findings)
        lines.append(f"{failed} of {len(self.findings)} checks failed" if failed else "all checks passed")
        if not self.passed:
            lines.append(f"suspected fault: {self.fault or 'none of the mistakes that are known here'}")
        return "\n".join(lines)


def grid(first: int, steps: int) -> Int[np.ndarray, "steps+1"]:
    """steps + 1 times in equal steps from `first` to 0; the last step goes from 0 to clean data."""
    return np.linspace(first, 0, steps + 1).astype(int)


def errors(trial: Trial, first: int, steps: int) -> dict[str, float]:
    """The largest error of x_0 in each half of the image, for a grid of equal steps."""
    error = np.abs(trial.run(start(first, COUNT), grid(first, steps)) - predicted_x0(exact_end(first, COUNT), 0))
    return {half: float(error[:, columns].max()) for half, columns in HALVES.items()}


# The checks. Each returns its finding, or None where it does not apply.


def check_calls(trial: Trial) -> Finding:
    """The number of network calls, and whether the network is called at the times of the grid."""
    counts, off = {}, None
    for n in (1, 2, 3, 5, 9):
        times = grid(LATE, n - 1) if n > 1 else np.array([LATE])
        trial.run(start(LATE, COUNT), times)
        counts[n] = len(trial.called)
        if off is None and not all(np.isclose(trial.called, t, atol=0.02).any() for t in times):
            off = f"; called at {_times(trial.called)} where the times are {_times(times)}"
    nfe = trial.claims.nfe
    wrong = {n for n in counts if nfe and nfe(n) != counts[n]}
    claim = f"; claimed {', '.join(str(nfe(n)) for n in counts)}" if wrong else ""
    text = f"{', '.join(map(str, counts.values()))} for {', '.join(map(str, counts))} times{claim}{off or ''}"
    return Finding("network calls", not wrong and not off, text)


def check_one_step(trial: Trial) -> Finding | None:
    """For information: with a single time, most solvers return the x_0 predicted there."""
    if trial.claims.stochastic:
        return None
    x = start(LATE, COUNT)
    error = np.abs(trial.run(x, np.array([LATE])) - predicted_x0(x, LATE)).max()
    return Finding("one step", None, f"differs from the x_0 predicted at t = {LATE} by {error:.1g}")


def check_order(trial: Trial, first: int) -> Finding | None:
    """The order of convergence to the exact flow from the time `first`."""
    if trial.claims.stochastic:
        return None
    name = f"order from t = {first}"
    if trial.claims.order is None:
        found = errors(trial, first, 2)
        return Finding(name, max(found.values()) < 1e-4, f"adaptive; {_by_half(found, '.1g')} of error")
    found = [errors(trial, first, steps) for steps in STEPS]
    orders = {half: _order([error[half] for error in found]) for half in HALVES}
    passed = min(orders.values()) >= trial.claims.order - ALLOWANCE
    text = f"{_by_half(orders, '.1f')} (claimed {trial.claims.order}); errors {_by_half(found[0], '.1g')} in "
    return Finding(name, passed, text + f"{STEPS[0]} steps, {_by_half(found[-1], '.1g')} in {STEPS[-1]}")


def _order(found: list[float]) -> float:
    """The slope of log2 error between the last two grids whose errors are above rounding in float32."""
    usable = [error for error in found if error > 1e-5]
    return float(np.log2(usable[-2] / usable[-1])) if len(usable) > 1 else np.inf


def check_last_step(trial: Trial) -> Finding | None:
    """What is returned after the last time: the x_0 predicted there, or x itself."""
    if trial.claims.stochastic or trial.claims.order is None:
        return None
    x = exact_end(LATE, COUNT)
    ends = {
        "the x_0 predicted at the last time": predicted_x0(x, 0),
        "x of the last time, with its noise": x,
        "x of the last time, divided by its signal": x / np.sqrt(ALPHA_BARS[0]),
    }
    x0 = trial.run(start(LATE, COUNT), grid(LATE, STEPS[-1]))
    distances = {text: np.sqrt(np.mean((x0 - end) ** 2)) for text, end in ends.items()}
    nearest = min(distances, key=distances.get)
    return Finding("last step", nearest == next(iter(ends)), f"nearest to {nearest}, {distances[nearest]:.1g} from it")


def check_moments(trial: Trial) -> Finding:
    """Mean and covariance of the x_0 of Gaussian data, against those of the exact flow."""
    count = MANY if trial.claims.stochastic else COUNT
    steps = LATE if trial.claims.stochastic else STEPS[-1]
    half = HALVES["Gaussian"]
    x0 = trial.run(start(LATE, count), grid(LATE, steps))[:, half]
    exact = predicted_x0(exact_end(LATE, count), 0)[:, half]
    spread = exact.std(axis=0)
    mean = np.abs((x0.mean(axis=0) - exact.mean(axis=0)) / spread).max()
    covariance = np.abs((np.cov(x0.T) - np.cov(exact.T)) / np.outer(spread, spread)).max()
    allowed = 5 / np.sqrt(count) if trial.claims.stochastic else 0.1
    text = f"mean wrong by {mean:.1g}, covariance by {covariance:.1g} of the data's spread, in {steps + 1} steps"
    return Finding("mean and covariance", max(mean, covariance) < allowed, text)


def check_batch(trial: Trial) -> Finding | None:
    """Whether an image depends on the size of its batch, or on the run."""
    if trial.claims.stochastic:
        return None
    x, times = start(LATE, COUNT), grid(LATE, 4)
    together = trial.run(x, times)
    again = np.abs(trial.run(x, times) - together).max()
    alone = np.abs(trial.run(x[:3], times) - together[:3]).max()
    text = f"differs by {again:.1g} in a second run, and by {alone:.1g} in a batch of 3"
    return Finding("repeated, other batch", max(again, alone) < 1e-5, text)


def check_two_steps(trial: Trial) -> Finding | None:
    """For information: most solvers of any order take DDIM's steps where there are only two times."""
    if trial.claims.stochastic or trial.claims.order is None:
        return None
    x, times = start(LATE, COUNT), grid(LATE, 1)
    return Finding("two steps", None, f"differs from DDIM by {np.abs(trial.run(x, times) - ddim(x, times)).max():.1g}")


CHECKS: Mapping[str, Callable[[Trial], Finding | None]] = {
    "network calls": check_calls,
    "one step": check_one_step,
    "two steps": check_two_steps,
    f"order from t = {LAST}": lambda trial: check_order(trial, LAST),
    f"order from t = {LATE}": lambda trial: check_order(trial, LATE),
    "last step": check_last_step,
    "mean and covariance": check_moments,
    "repeated, other batch": check_batch,
}


def verify(sampler: Sampler) -> Report:
    """Tests a sampler; see this module's text for its arguments. A sampler that raises an error fails the check."""
    trial = Trial(sampler)
    findings = [finding for name, check in CHECKS.items() if (finding := _attempt(name, check, trial))]
    report = Report(findings, None)
    return report if report.passed else report._replace(fault=suspected_fault(trial))


def _attempt(name: str, check: Callable[[Trial], Finding | None], trial: Trial) -> Finding | None:
    try:
        return check(trial)
    except Exception as error:  # a foreign sampler can raise anything
        lines = str(error).splitlines() or [""]
        return Finding(name, False, f"raised {type(error).__name__}: {lines[0]}")


def suspected_fault(trial: Trial) -> str | None:
    """The known mistake that gives DDIM the sampler's results; None where there is none.

    Five times tell the mistakes of first-order samplers apart, two times those of most others.
    """
    x = start(LATE, COUNT)
    for steps in (4, 1):
        times = grid(LATE, steps)
        with contextlib.suppress(Exception):  # then the check of the calls says so
            x0 = trial.run(x, times)
            right = ddim(x, times)
            for text, mistake in MISTAKES.items():
                wrong = ddim(x, times, **mistake)
                away, near = np.abs(wrong - right).max(), np.abs(wrong - x0).max()
                if near < 0.01 * away:
                    return f"{text} (differs from DDIM by {away:.1g}, from DDIM with this mistake by {near:.1g})"
    return None


def sampler_of(source: str) -> Sampler:
    """The sampler that --source names: module:function. Raises UserError if it cannot be imported.

    sampling:NAME is one of `sampling.SAMPLERS`; diffusers:CLASS and k_diffusion:NAME are adapted by examples/.
    """
    module, _, name = source.partition(":")
    if module in ADAPTERS:
        return function_of(f"{ADAPTERS[module]}:sampler_of", "--source")(name)
    return function_of(source, "--source")


def _by_half(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{value:{form}} ({half})" for half, value in values.items())


def _times(times: Any) -> str:
    return " ".join(f"{t:.4g}" for t in times)
