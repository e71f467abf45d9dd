"""Measures how long devices wait for batches."""

import time
from collections.abc import Callable
from queue import SimpleQueue


class IdleTime:
    """Measures the time since a pass began, and the time during which no batch was on the devices.

    One thread calls `batch_arrived`, and another thread calls `finished_after`, for batches in the same order.
    """

    def __init__(self):
        """Starts the clock: the devices are idle until the first batch arrives."""
        self._began, self._idle = time.monotonic(), 0.0
        self._arrivals: SimpleQueue[float] = SimpleQueue()
        self._finished = self._began

    def batch_arrived(self) -> None:
        """Records that the next batch is ready for the devices."""
        self._arrivals.put(time.monotonic())

    def finished_after(self, rows):
        """Waits for the rows of a batch, records that the devices have finished the batch, and returns the rows.

        Args:
          rows: the rows, or a function that waits for the rows and returns them.
        """
        rows = rows() if isinstance(rows, Callable) else rows
        self._idle += max(0.0, self._arrivals.get() - self._finished)
        self._finished = time.monotonic()
        return rows

    def share(self) -> float:
        """The share of the time during which no batch was on the devices."""
        return self._idle / max(time.monotonic() - self._began, 1e-9)
