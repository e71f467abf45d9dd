"""Defines the common style of all figures, and saves figures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from qkjax.runtime.files import atomic_path
from qkjax.runtime.visible import visible

# Okabe and Ito 2008: these colours are distinguishable with any colour vision. Black is reserved for axes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DIVERGING = "RdBu_r"  # red: similar (1), blue: opposite (-1); safe for red-green blindness
LINES = ("-", "--", ":", "-.")
GREY = "#B0B0B0"
WIDTH = 7.0
"""Width of a text page in inches."""
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
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """A context in which matplotlib uses the common style of all figures."""
    with matplotlib.rc_context(RC):
        yield


def look(group: int, member: int = 0) -> dict[str, str]:
    """Colour, marker and line of a curve, as arguments of `plot`.

    Groups have their own colours, and the members of a group their own markers. After six groups or six members,
    colours and markers repeat in other combinations, or with another line.
    """
    return {
        "color": COLOURS[group % len(COLOURS)],
        "marker": MARKERS[(group + group // len(COLOURS) + member) % len(MARKERS)],
        "linestyle": LINES[(group // len(COLOURS) + member // len(MARKERS)) % len(LINES)],
    }


def literal(name: str) -> str:
    """Escapes a name for matplotlib, which treats $ as mathematics and hides legend entries that begin with _."""
    return (" " if name.startswith("_") else "") + visible(name, "\n").replace("$", r"\$")


FORMATS = {".png": {}, ".pdf": {"CreationDate": None}}
"""A dict from file extensions to metadata of the format. The metadata contain no time, so that equal figures have equal
files."""
OPTIONS = {".png": {"pil_kwargs": {"compress_level": 1}}}
"""A dict from file extensions to options for saving. Compression level 1 takes a quarter of the time of level 6, but
files are a twelfth larger."""
MARGIN = 0.1  # margin around a figure in inches


def save(figure: Figure, stem: Path | str, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Writes a figure to `stem.png` and `stem.pdf`, or only to the given formats. Each file is written atomically.

    The layout is computed once for all formats.

    Args:
      figure: the figure, which is not changed.
      stem: path without a file extension.
      formats: file extensions, as in the keys of `FORMATS`.

    Returns:
      The paths of the files, in the order of `formats`.

    Raises:
      QkjaxError: a file cannot be written.

    Example:
      >>> figure = Figure()
      >>> [path.as_posix() for path in save(figure, "results/empty", (".png",))]
      ['results/empty.png']
    """
    paths, stem = [], Path(stem)
    with styled(), _layout_done(figure) as box:
        for suffix in formats:
            paths.append(stem.with_name(stem.name + suffix))
            with atomic_path(paths[-1]) as temporary:
                figure.savefig(temporary, bbox_inches=box, metadata=FORMATS[suffix], **OPTIONS.get(suffix, {}))
    return paths


@contextmanager
def _layout_done(figure: Figure) -> Iterator[Bbox]:
    """A context in which the figure has its final layout; yields the bounding box of the figure in inches.

    Without this context, matplotlib would compute the layout and the bounding box again for each file.
    """
    engine, dpi = figure.get_layout_engine(), figure.dpi
    try:
        figure.set_dpi(DPI)
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine(None)
        yield figure.get_tightbbox().padded(MARGIN)
    finally:
        figure.set_dpi(dpi)
        if engine is not None:
            figure.set_layout_engine(engine)
