"""The results of a session as lines of JSON, each written to the disk as soon as it is known."""

import json
import os
import time
from pathlib import Path

STARTED, FAILED, LEFT_OUT = "started", "failed", "left_out"
"""Keys of lines without a measurement: the row began; why it failed; why it was not run."""


class Journal:
    """Appends lines to a file and reads them. Several processes may append to the same file, one after the other."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, row: str, **values) -> None:
        """Appends a line and waits until it is on the disk. Numbers have four significant digits."""
        values = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in values.items()}
        line = json.dumps({"row": row, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **values})
        with self.path.open("ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")  # an earlier process died while it wrote a line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if STARTED not in values:
            print(line, flush=True)

    def lines(self) -> list[dict]:
        """All lines; lines that were cut off are left out."""
        result = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                result.append(json.loads(line))
            except ValueError:
                continue
        return result

    def measured(self, device: str) -> set[str]:
        """Names of the rows that have a measurement on this device."""
        without = {STARTED, FAILED, LEFT_OUT}
        return {line["row"] for line in self.lines() if line.get("device") == device and not without & line.keys()}
