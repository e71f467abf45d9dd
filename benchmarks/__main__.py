"""All benchmarks with peers, one after the other in one process group, and one table of ratios.

    pip install -e ".[bench]" && python -m benchmarks                # about half an hour on two CPU cores
    python -m benchmarks decompose capture --out benchmarks/results  # some of them

Each runs in a process of its own, so that none sees what another left. Peers that are not installed are left out, and
said to be. The table goes to a file with the date and the device.
"""

import multiprocessing
import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tyro
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).parent))  # each is also a script that imports those beside it

NAMES = ("decompose", "capture", "scan", "train", "load")
LIBRARIES = ("jax", "flax", "numpy", "torch", "transformers", "transformer-lens")


def run(name: str) -> tuple[list[tuple], str]:
    """The lines of one benchmark, and the device it ran on."""
    import jax

    lines = [tuple(line) for line in __import__(name).main()]
    return lines, jax.devices()[0].device_kind


def main(names: Positional[tuple[str, ...]] = NAMES, out: Path = Path("benchmarks/results")) -> None:
    """Runs them, prints the table, and writes it.

    Args:
      names: of benchmarks: decompose, capture, scan, train, load.
      out: folder of the table.
    """
    from table import Line, markdown

    lines, device = [], ""
    for name in names:
        print(f"\n# {name}", flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found, device = pool.apply(run, (name,))
        lines += [Line(*line) for line in found]
    told = [f"{date.today()}, {device}, {os.cpu_count()} cores, Python {platform.python_version()}", _versions(), ""]
    text = "\n".join([*told, markdown(lines), ""])
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{date.today()}-{device.lower().replace(' ', '-')}.md"
    path.write_text(text)
    print(f"\n{text}\nwrote {path}")


def _versions() -> str:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


if __name__ == "__main__":
    tyro.cli(main)
