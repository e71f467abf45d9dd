"""The process that measures rows, `python -m benchmarks.gpu.worker`; `benchmarks.gpu.session` starts it.

A row that fails does not end the process. If the process dies or hangs, the session starts another one.
"""

import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu.journal import FAILED, LEFT_OUT, STARTED, Journal
from benchmarks.gpu.rows import ROWS, Row
from benchmarks.table import versions

LIBRARIES = ("jax", "flax", "optax", "numpy", "torch", "timm", "transformer-lens")


def main(names: list[str], library: str, tiny: bool, ends: float, path: Path) -> None:
    """Measures rows of one library, and appends them to the journal.

    Args:
      names: names of the rows.
      library: "jax" or "torch", which names the device.
      tiny: whether all shapes are tiny.
      ends: time (seconds since the epoch) at which no further row begins.
      path: the journal's file.
    """
    journal, device = Journal(path), _device(library)
    common = {"device": f"{device}, tiny" if tiny else device}
    known = journal.measured(common["device"])
    journal.write(
        "session",
        **common,
        library=library,
        versions=", ".join([f"Python {platform.python_version()}", *versions(LIBRARIES)]),
        cores=len(os.sched_getaffinity(0)),
    )
    for row in (row for row in ROWS if row.name in names and row.name not in known):
        if ends - time.time() < (0 if tiny else row.seconds):
            journal.write(row.name, **common, **{LEFT_OUT: f"{row.seconds:.0f} s do not fit in the time"})
            continue
        journal.write(row.name, **common, **{STARTED: True})
        journal.write(row.name, **common, **_measured(row, tiny))


def _measured(row: Row, tiny: bool) -> dict:
    """The values of a row, the reason why it failed, or the library that is not installed."""
    start = time.perf_counter()
    try:
        values = row.run(tiny)
    except ModuleNotFoundError as error:
        return {LEFT_OUT: f"{error.name} is not installed"}
    except Exception as error:
        last = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
        return {FAILED: f"{type(error).__name__}: {str(error)[:300]}", "where": last}
    return {**values, "row_s": time.perf_counter() - start}


def _device(library: str) -> str:
    if library == "torch":
        from benchmarks.gpu.torch_peers import device_name

        return device_name()
    import jax

    return jax.devices()[0].device_kind


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(arguments["names"], arguments["library"], arguments["tiny"], arguments["ends"], Path(arguments["path"]))
