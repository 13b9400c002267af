"""How benchmarks time a call."""

import time
from collections.abc import Callable
from statistics import median


def milliseconds(
    call: Callable[[], object], seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Of each call, for at least `seconds` in all, after one that takes back the caches from whoever ran before.

    With time.process_time as the clock, CPU time of all threads, which other jobs on the machine change less.
    """
    call()
    times = []
    while sum(times) < 1e3 * seconds:
        start = clock()
        call()
        times.append(1e3 * (clock() - start))
    return times


def in_turn(ours: Callable, other: Callable, rounds: int) -> tuple[float, float, float]:
    """Median seconds of a call of each, median of ours / other; the first round, which compiles, is left out."""
    turns = [[median(milliseconds(side)) / 1e3 for side in (ours, other)] for _ in range(rounds + 1)][1:]
    return *map(median, zip(*turns, strict=True)), median(mine / others for mine, others in turns)
