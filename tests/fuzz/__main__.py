"""python -m tests.fuzz --minutes 60 [--seed N] [--kinds npz hub ...]: fuzzes until the time is over.

Each batch of examples runs in a process of its own, with a limit of memory. A process that dies or hangs is a failure
of the example that it was at. New failures are written to `corpus/`, or to `--corpus FOLDER`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .fuzzing import CORPUS, fuzz, shortest, write_recipe
from .kinds import KINDS
from .oracle import SECONDS, ViolationError, examine

BATCH = 300
BATCH_SECONDS = 90
"""Seconds after which a process begins no other example."""
MOST_MEMORY = 4 << 30
"""Limit of the memory of a process that it may still allocate after it has imported everything, in bytes."""

MOST_SHOWN = 1500
"""Characters of a failure that are printed."""


def main() -> None:
    """Runs batches of all kinds in turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--batch", type=int, default=BATCH, help="examples per process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return _child(given.kinds[0], given.seed, given.batch, Path(given.child))
    return _parent(given)


def _parent(given) -> None:
    end, seed, counts, failures = time.monotonic() + 60 * given.minutes, given.seed, Counter(), {}
    print(f"seed {seed}", flush=True)
    while time.monotonic() < end:
        for kind in given.kinds:
            if time.monotonic() > end:
                break
            seed += 1
            for changes, failure in _batch(kind, seed, given.batch, end, counts):
                path = write_recipe(kind, changes, failure, given.corpus)
                if path not in failures:
                    print(f"{path.name}: {failure[:MOST_SHOWN]}\n  {json.dumps(changes)[:MOST_SHOWN]}", flush=True)
                failures[path] = failures.get(path, 0) + 1
        print(f"examples: {dict(counts)}; failures: {len(failures)}", flush=True)
    print(f"{sum(counts.values())} examples, {len(failures)} different failures")
    sys.exit(1 if failures else 0)


def _batch(kind: str, seed: int, count: int, end: float, counts: Counter) -> list[tuple[list, str]]:
    """Runs one batch in a process; returns its failures, and counts its examples."""
    with tempfile.TemporaryDirectory(prefix="qkjax-fuzz-") as home:
        log, output = Path(home, "log"), Path(home, "stderr")
        log.touch()
        command = [sys.executable, "-m", "tests.fuzz", "--child", home, "--kinds", kind, "--seed", str(seed)]
        environment = {**os.environ, "TMPDIR": home}  # what a killed process leaves is removed with it
        with open(output, "wb") as stderr:
            process = subprocess.Popen([*command, "--batch", str(count)], stderr=stderr, stdout=stderr, env=environment)
            while process.poll() is None and time.time() - log.stat().st_mtime < 3 * SECONDS and time.monotonic() < end:
                time.sleep(0.2)
            stopped = process.poll() is None
            process.kill()
            process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        message = output.read_text(errors="replace")
    counts[kind] += sum("outcome" in line for line in lines)
    failures = [(line["changes"], line["failure"]) for line in lines if "failure" in line]
    if stopped and time.monotonic() < end:
        failures.append((_last(lines), "the process hangs"))
    elif not stopped and process.returncode:
        failures.append((_last(lines), f"the process ended with {process.returncode}\n{message[-3000:]}"))
    return failures


def _last(lines: list[dict]) -> list:
    return next((line["begin"] for line in reversed(lines) if "begin" in line), [])


def _child(kind: str, seed: int, count: int, home: Path) -> None:
    """Examines a batch, and logs each example before and after it."""
    with open(home / "log", "a") as file:

        def log(**line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        def examined(changes: list, failure: ViolationError | None) -> None:
            log(outcome=failure is None)
            if failure:
                changes, failure = shortest(kind, changes, failure, home)
                log(changes=changes, failure=str(failure))

        examine(KINDS[kind], [], home)  # compiles, so that the limit of memory counts from here
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY, size + MOST_MEMORY))
        fuzz(kind, seed, count, home, lambda changes: log(begin=changes), examined, time.monotonic() + BATCH_SECONDS)


if __name__ == "__main__":
    main()
