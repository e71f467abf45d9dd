"""The number of processor cores for threads and processes."""

import os


def cores() -> int:
    """The number of cores that this process may use.

    A batch system or container may allow a process fewer cores than the machine has; `os.cpu_count` returns the cores
    of the machine.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
