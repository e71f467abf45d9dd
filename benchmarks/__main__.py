"""All benchmarks with peers, one after the other in one process group, and one table of ratios.

    pip install -e ".[bench]" && python -m benchmarks                # about half an hour on two CPU cores
    python -m benchmarks decompose capture --out benchmarks/results  # some of them
    python -m benchmarks gpu --seconds 540                           # on a GPU: see benchmarks/gpu/session.py

Each runs in a process of its own, so that none sees what another left. Peers that are not installed are left out, and
said to be. The table goes to a file with the date and the device.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import tyro
from tyro.conf import Positional

from benchmarks.gpu import session
from benchmarks.table import Line, markdown, versions

HERE = Path(__file__).parent  # each is also a script that imports those beside it

NAMES = ("decompose", "distance", "capture", "scan", "train", "load", "eager")
LIBRARIES = ("jax", "flax", "numpy", "torch", "transformers", "transformer-lens")


def run(name: str) -> tuple[list[Line], str]:
    """The lines of one benchmark, and the device it ran on."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "lines.json"
        code = (
            f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import {name}; lines = {name}.main(); "
            f"import jax; json.dump([lines, jax.devices()[0].device_kind], open({str(told)!r}, 'w'))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        lines, device = json.loads(told.read_text())
    return [Line(*line) for line in lines], device


def main(names: Positional[tuple[str, ...]] = NAMES, out: Path = Path("benchmarks/results")) -> None:
    """Runs them, prints the table, and writes it.

    Args:
      names: of benchmarks: decompose, distance, capture, scan, train, load, eager.
      out: folder of the table.
    """
    lines, device = [], ""
    for name in names:
        print(f"\n# {name}", flush=True)
        found, device = run(name)
        lines += found
    told = [
        f"{date.today()}, {device}, {os.cpu_count()} cores, Python {platform.python_version()}",
        ", ".join(versions(LIBRARIES)),
        "",
    ]
    text = "\n".join([*told, markdown(lines), ""])
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{date.today()}-{device.lower().replace(' ', '-')}.md"
    path.write_text(text)
    print(f"\n{text}\nwrote {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        tyro.cli(session.main, prog="python -m benchmarks gpu", args=sys.argv[2:])
    else:
        tyro.cli(main)
