"""How all figures look, and how they are saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from qkjax.runtime.files import atomic_path

# Okabe and Ito 2008: distinguishable with any colour vision. Black is kept for axes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DIVERGING = "RdBu_r"  # red: similar (1), blue: opposite (-1); safe for red-green blindness
GREY = "#B0B0B0"
WIDTH = 7.0
"""Inches: a page of text."""
DPI = 200

RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,
    "svg.hashsalt": "qkjax",
    "savefig.dpi": DPI,
}


@contextmanager
def styled() -> Iterator[None]:
    """The settings of all figures, for the time of drawing one."""
    with matplotlib.rc_context(RC):
        yield


def literal(name: str) -> str:
    """A name as matplotlib must get it to draw just that: no mathematics, no hidden legend entry."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


FORMATS = {".png": {}, ".pdf": {"CreationDate": None}}
"""Endings, and what metadata to write: no times, so that equal figures are equal files."""


def save(figure: Figure, stem: Path | str, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Writes `stem.png` and `stem.pdf`, or one of them, each atomically.

    Raises:
      QkjaxError: a file cannot be written.
    """
    paths, stem = [], Path(stem)
    for suffix in formats:
        paths.append(stem.with_name(stem.name + suffix))
        with styled(), atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary, bbox_inches="tight", metadata=FORMATS[suffix])
    return paths
