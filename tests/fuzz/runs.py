"""Folders of training runs, from which training resumes, and configurations of runs."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import qkjax
from qkjax.train.config import TrainConfig
from qkjax.train.run import train

from . import containers, files, json_values
from .kind import Kind, change
from .progress import home

TINY = TrainConfig(width=16, depth=1, heads=1, mlp_dim=16, steps=9, warmup=0, every=3, batch=8, learning_rate=1e-3)
LINES = st.one_of(
    change("lines", st.sampled_from(["swapped", "twice", "first gone", "last gone", "cut", "more", "empty line"])),
    change("json", st.integers(0, 9), files.INDEX, st.sampled_from(json_values.HOW),
           st.integers(0, len(json_values.VALUES) - 1)),
)  # fmt: skip


@cache
def finished() -> Path:
    """The folder of a finished run."""
    train(TINY, home() / "run")
    return home() / "run"


def make(root: Path, changes: list) -> Path:
    """The folder of a run whose model has not been written yet."""
    folder = shutil.copytree(finished(), root / "m")
    (folder / "model.npz").unlink()
    for what, *arguments in changes:
        if what in files.NAMES_OF_CHANGES:
            files.apply(root, what, *arguments)
        elif what in containers.CHANGES:
            containers.CHANGES[what](root, *arguments)
        elif what.startswith("json"):
            json_values.apply(root, what, *arguments)
        elif what == "lines":
            _change_lines(folder / "metrics.jsonl", *arguments)
    return folder


def _change_lines(path: Path, how: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    changed = {"swapped": lines[::-1], "twice": lines * 2, "first gone": lines[1:], "last gone": lines[:-1],
               "cut": [*lines[:-1], lines[-1][:20]], "more": [*lines, "{}\n"],
               "empty line": [*lines[:1], "\n", *lines[1:]]}  # fmt: skip
    path.write_text("".join(changed[how]))


def run(folder: Path, scratch: Path) -> dict[str, bytes]:
    """The model of the resumed run, bit for bit."""
    train(TINY, folder)
    qkjax.load(folder)
    return arrays(folder)


def arrays(folder: Path) -> dict[str, bytes]:
    """The arrays of a run's model."""
    with np.load(folder / "model.npz") as file:
        return {name: file[name].tobytes() for name in file}


def check(folder: Path, changes: list, result: dict) -> None:
    """The model and the metrics are those of the run that was not touched."""
    assert result == arrays(finished())
    assert (folder / "metrics.jsonl").read_bytes() == (finished() / "metrics.jsonl").read_bytes()


KINDS = {
    "runs": Kind(make, st.one_of(files.CHANGES, json_values.CHANGES, LINES), run, check, writes=True),
}
