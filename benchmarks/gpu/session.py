"""`python -m benchmarks gpu`: all rows that fit in a given time, each in the results as soon as it is measured.

    python -m benchmarks gpu --seconds 540 --out gpu-results
    python -m benchmarks gpu --seconds 540 --out gpu-results        # again: only the rows that are missing
    python -m benchmarks.gpu.table gpu-results/rows.jsonl           # the tables

The rows run in child processes, which this process watches: if a row hangs or ends its process, the next row runs in a
new process. The row that is being measured when the time is over is given up.
"""

import json
import os
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import tyro

from benchmarks.gpu.journal import FAILED, LEFT_OUT, STARTED, Journal
from benchmarks.gpu.rows import ROWS, Row

START_SECONDS = 120.0
"""What a process may take to import its libraries and find the device."""
PATIENCE = 4.0
"""The session stops a row that takes this many times its expected seconds."""
ROOT = Path(__file__).parents[2]


def main(
    seconds: float = 540.0, out: Path = Path("gpu-results"), tiny: bool = False, only: tuple[str, ...] = ()
) -> None:
    """Measures all rows that have no result in the folder yet.

    Args:
      seconds: time for everything.
      out: folder of the results, rows.jsonl, and of the compilation cache.
      tiny: tiny shapes, which take about a minute on a CPU; tests the rows, and measures nothing of interest.
      only: parts of names; rows whose name has none of these parts are not measured.
    """
    ends = time.time() + seconds
    journal = Journal(out / "rows.jsonl")
    rows = [row for row in ROWS if not only or any(part in row.name for part in only)]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out.absolute() / "compiled"))
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    for library, group in groupby(rows, key=lambda row: row.library):
        _run(list(group), library, tiny, ends, journal)
    print(f"wrote {journal.path}; next: python -m benchmarks.gpu.table {journal.path}")


def _run(rows: list[Row], library: str, tiny: bool, ends: float, journal: Journal) -> None:
    """Measures rows of one library, in as many processes as it takes."""
    while rows:
        before = len(journal.lines())
        if ends - time.time() < (0 if tiny else 10):
            for row in rows:
                journal.write(row.name, **{LEFT_OUT: "no time was left"})
            return
        reason = _watched(rows, library, tiny, ends, journal, before)
        if reason is None:
            return
        finished = {line["row"] for line in journal.lines()[before:] if STARTED not in line}
        rows = [row for row in rows if row.name not in finished]
        broken = _last_started(journal, before) or (rows[0].name if rows else "")
        if rows:  # rows that an earlier session measured come before it; the next process skips them again
            journal.write(broken, **{FAILED: reason})
            rows = [row for row in rows if row.name != broken]


def _watched(rows: list[Row], library: str, tiny: bool, ends: float, journal: Journal, before: int) -> str | None:
    """Runs one process; returns why it had to be ended or how it died, or None if it measured all rows."""
    arguments = {"names": [row.name for row in rows], "library": library, "tiny": tiny, "ends": ends}
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu.worker",
        json.dumps({**arguments, "path": str(journal.path.absolute())}),
    ]
    expected = {row.name: row.seconds for row in rows}
    began = time.time()
    with subprocess.Popen(words, cwd=ROOT) as process:
        while process.poll() is None:
            time.sleep(0.1)
            lines = journal.lines()[before:]
            size, last = len(lines), lines[-1] if lines else {}
            if size != getattr(process, "size", None):
                process.size, began = size, time.time()
            limit = PATIENCE * expected.get(last.get("row"), 0) if STARTED in last else 0
            limit = max(limit, START_SECONDS)
            if time.time() > ends or time.time() - began > limit:
                process.kill()
                over = time.time() > ends
                return "the time was over" if over else f"took more than {limit:.0f} s, and was given up"
    return None if process.returncode == 0 else f"its process ended with code {process.returncode}"


def _last_started(journal: Journal, before: int) -> str:
    lines = journal.lines()[before:]
    return lines[-1]["row"] if lines and STARTED in lines[-1] else ""


if __name__ == "__main__":
    tyro.cli(main)
