"""The peak memory that docs/commands.md states holds for a small model, and of `analyze` for a ViT-S/14, too."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_scan import make_images

from conftest import DATA, DEFAULT

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
FEW = {
    "analyze": [], "image": ["chelsea", "--layer", "0"], "modes": ["--images", "images", "--layer", "0", "--head", "0"],
    "preference": ["--count", "8"], "objects": ["--count", "8"], "report": ["--images", "images"],
    "ablate": ["--images", "images", "--select", "modes=0"], "export": ["out.npz"],
}  # fmt: skip
"""Little work: how many images there are does not count."""


def stated(command: str) -> list[float]:
    """Gigabytes for the small model and the larger one."""
    section = re.search(rf"^## qkjax {command}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    line = re.search(r"^Peak memory: (\d+\.\d+) GB \([^)]*\), (\d+\.\d+) GB", section, re.MULTILINE)
    return [float(line[1]), float(line[2])]


LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Between the tests and the command: a process starts with the peak of the one that it is forked from."""


def peak(folder: Path, *arguments) -> float:
    """Gigabytes at the most, of a command in a process of its own."""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "qkjax", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024 / 1e9  # Linux counts in KiB


@pytest.mark.skipif(sys.platform != "linux", reason="the units of a process's peak memory are Linux's")
@pytest.mark.parametrize(("command", "size"), [*((c, "small") for c in FEW), ("analyze", "ViT-S/14")])
def test_peak_memory_is_as_stated(command, size, default, tmp_path):
    """No more than a fifth above, as it varies; and not so far below that the page says nothing."""
    make_images(tmp_path / "images", 8)
    model = DATA / "a.npz" if size == "small" else DEFAULT
    used, limit = peak(tmp_path, command, model, *FEW[command]), stated(command)[size != "small"]
    print(f"{command}, {size}: {used:.2f} GB, stated {limit:.2f}")
    assert 0.4 * limit < used < 1.2 * limit
