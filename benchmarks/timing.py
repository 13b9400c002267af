"""How benchmarks time a call."""

import time
from collections.abc import Callable


def milliseconds(call: Callable[[], object], seconds: float = 0.5) -> list[float]:
    """Of each call, for at least `seconds` in all, after one that takes back the caches from whoever ran before."""
    call()
    times = []
    while sum(times) < 1e3 * seconds:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times
