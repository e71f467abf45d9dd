"""Times functions on a device."""

import statistics
import time
from collections.abc import Callable


def seconds_of(run: Callable[[], object], wait: Callable[[object], object], repeats: int = 10) -> tuple[float, float]:
    """Seconds of the first call, which compiles, and the median of the next calls.

    Args:
      run: function to time.
      wait: function that takes the result of `run` and waits until the device has computed it.
      repeats: number of calls after the first call.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - start)
    return times[0], statistics.median(times[1:])
