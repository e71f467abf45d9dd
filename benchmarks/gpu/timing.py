"""Times functions on a device."""

import statistics
import time
from collections.abc import Callable

IN_A_ROW = 4
"""Calls of a pass over batches before the host waits for the device, so that the device is not idle between batches."""


def seconds_of(
    run: Callable[[], object], wait: Callable[[object], object], repeats: int = 10, in_a_row: int = 1
) -> tuple[float, float]:
    """Seconds of the first call, which compiles, and the median over the repeats of the seconds per call.

    Args:
      run: function to time.
      wait: function that takes the result of `run` and waits until the device has computed it.
      repeats: number of repeats after the first call.
      in_a_row: number of calls in a repeat, after which it waits for the last call.
    """
    start = time.perf_counter()
    wait(run())
    first, times = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(in_a_row - 1):
            run()
        wait(run())
        times.append((time.perf_counter() - start) / in_a_row)
    return first, statistics.median(times)
