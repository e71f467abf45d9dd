"""Draws figures of a sweep, which is a set of trained models that differ in constraint and seed."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from qkjax.figures.style import COLOURS, GREY, WIDTH, literal, styled
from qkjax.results.rows import Row


def sweep_accuracy(dataset: xr.Dataset, rows: Sequence[Row]) -> Figure:
    """Plots the accuracy on held-out images by constraint, and the difference from the constraint `free`.

    The first panel shows one dot per seed, and the mean with its 95% interval. The second panel shows the difference
    from `free`, where runs with the same seed are paired, with its 95% interval.

    Args:
      dataset: dataset of a sweep; see `train.sweep.collect`.
      rows: table of the sweep; see `train.findings.table`.
    """
    height = np.arange(len(rows))[::-1]
    with styled():
        figure = Figure(figsize=(WIDTH, 0.28 * len(rows) + 1.1), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for y, row in zip(height, rows, strict=True):
            values = 100 * dataset.accuracy.sel(constraint=row["constraint"]).isel(step=-1).values
            left.plot(values, np.full(len(values), y), ".", color=GREY, markersize=5, zorder=1)
            for axes, name, colour in ((left, "accuracy", COLOURS[0]), (right, "to_free", COLOURS[1])):
                low, high = (row[f"{name}_{end}" if name == "to_free" else end] for end in ("low", "high"))
                axes.plot([low, high], [y, y], "-", color=colour)
                axes.plot(row[name], y, "o", color=colour, markersize=4.5)
        right.axvline(0, color="black", linewidth=0.8, linestyle=":")
        left.set_yticks(height, [literal(row["constraint"]) for row in rows])
        left.set(xlabel="accuracy on held-out images (%)", title="mean and 95% interval (dots: seeds)")
        right.set(xlabel="difference (percentage points)", title="difference from free, paired by seed")
        right.tick_params(axis="y", length=0)
        return figure


def sweep_curves(dataset: xr.Dataset) -> Figure:
    """Plots the accuracy on held-out images during training, with one panel per constraint.

    Each panel has a thin line per seed, a thick line for the mean over seeds, and a dotted line for the mean of the
    constraint `free`.
    """
    names = list(dataset.constraint.values)
    mean = 100 * dataset.accuracy.mean("seed")
    with styled():
        figure, panels = _panels(names, 1.45)
        for axes, name in zip(panels, names, strict=True):
            if "free" in names and name != "free":
                axes.plot(dataset.step, mean.sel(constraint="free"), ":", color="black", linewidth=1.0)
            axes.plot(
                dataset.step, 100 * dataset.accuracy.sel(constraint=name).T, "-", color=COLOURS[0], alpha=0.35,
                linewidth=0.7,
            )  # fmt: skip
            axes.plot(dataset.step, mean.sel(constraint=name), "-", color=COLOURS[0])
            axes.set_title(literal(str(name)), fontsize=8)
        figure.supxlabel("training step", fontsize=9)
        figure.supylabel("accuracy on held-out images (%)", fontsize=9)
        return figure


def sweep_cosines(dataset: xr.Dataset) -> Figure:
    """Plots the weighted cosine of the modes, averaged over heads and seeds, against layer.

    There is one panel per constraint, with lines from the first evaluation (light) to the last (dark). The vertical
    scale is linear from -0.1 to 0.1, and logarithmic outside of this range. The small cosines of unconstrained models
    are therefore still visible next to the large cosines of constrained models.
    """
    names = list(dataset.constraint.values)
    values = dataset.weighted_cosine.mean("seed")
    shades = matplotlib.colormaps["Blues"](np.linspace(0.25, 1, dataset.sizes["step"]))
    with styled():
        figure, panels = _panels(names, 1.5)
        for axes, name in zip(panels, names, strict=True):
            axes.axhline(0, color=GREY, linewidth=0.8)
            for place, shade in enumerate(shades):
                axes.plot(dataset.layer, values.sel(constraint=name).isel(step=place), "-", color=shade, linewidth=1)
            axes.plot(dataset.layer, values.sel(constraint=name).isel(step=-1), "o", color=shades[-1], markersize=3)
            axes.set_title(literal(str(name)), fontsize=8)
            axes.set_yscale("symlog", linthresh=0.1)
            axes.set(ylim=(-1.5, 1.5), yticks=[-1, -0.1, 0, 0.1, 1], yticklabels=["-1", "-0.1", "0", "0.1", "1"])
            axes.yaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.supxlabel("layer", fontsize=9)
        figure.supylabel("weighted cosine of query and key direction", fontsize=9)
        steps = Normalize(float(dataset.step[0]), float(dataset.step[-1]))
        shown = ScalarMappable(steps, ListedColormap(shades))
        figure.colorbar(shown, ax=panels, label="training step", shrink=0.6)
        return figure


def _panels(names: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """Makes a figure with one panel per name. The figure has at most four panels per row, each `height` inches high."""
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, height * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    return figure, list(panels[: len(names)])
