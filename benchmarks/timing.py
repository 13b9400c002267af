"""Functions with which the benchmarks time calls."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


def milliseconds(
    call: Callable[[], object], seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Times calls until they add up to `seconds`, and returns the milliseconds of each.

    The first call fills the processor's caches and is not timed. With time.process_time as the clock, the result is the
    CPU time of all threads, which depends less on other jobs on the machine.
    """
    call()
    times = []
    while sum(times) < 1e3 * seconds:
        start = clock()
        call()
        times.append(1e3 * (clock() - start))
    return times


class Comparison(NamedTuple):
    """Medians over the rounds of `in_turn`."""

    ours: float  # seconds of a call
    other: float
    ratio: float  # median of ours / other, both from the same round


def in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> Comparison:
    """Times two calls alternately, so that other jobs on the machine slow both equally.

    The first round compiles and is not counted.
    """
    turns = []
    for _ in range(rounds + 1):
        turns.append([median(milliseconds(side)) / 1e3 for side in (ours, other)])
    compared = turns[1:]
    return Comparison(
        ours=median(seconds for seconds, _ in compared),
        other=median(seconds for _, seconds in compared),
        ratio=median(seconds / others for seconds, others in compared),
    )
