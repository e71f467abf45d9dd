"""Figures of a sweep: many trained models that differ in their constraint and their seed."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, DIVERGING, GREY, WIDTH, literal, styled
from qkjax.results import Row


def sweep_accuracy(dataset: xr.Dataset, rows: Sequence[Row]) -> Figure:
    """Accuracy on held-out images by constraint: a dot for each seed, mean and 95% interval; and, beside it, the
    differences to `free` with theirs.

    Args:
      dataset: of a sweep, see `train.sweep.collect`.
      rows: its table, see `train.sweep.table`.
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
        left.set_xlabel("accuracy on held-out images (%)")
        right.set_xlabel("difference to free, seed by seed (points)")
        right.tick_params(axis="y", length=0)
        return figure


def sweep_curves(dataset: xr.Dataset) -> Figure:
    """Accuracy on held-out images in the course of training: a panel for each constraint, a thin line for each seed,
    their mean thick, that of `free` dotted."""
    names = list(dataset.constraint.values)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    mean = 100 * dataset.accuracy.mean("seed")
    with styled():
        figure = Figure(figsize=(WIDTH, 1.45 * lines + 0.4), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            if "free" in names and name != "free":
                axes.plot(dataset.step, mean.sel(constraint="free"), ":", color="black", linewidth=1.0)
            axes.plot(
                dataset.step, 100 * dataset.accuracy.sel(constraint=name).T, "-", color=COLOURS[0], alpha=0.35,
                linewidth=0.7,
            )  # fmt: skip
            axes.plot(dataset.step, mean.sel(constraint=name), "-", color=COLOURS[0])
            axes.set_title(literal(str(name)), fontsize=8)
        for axes in panels[len(names) :]:
            axes.remove()
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("accuracy on held-out images (%)", fontsize=9)
        return figure


def sweep_cosines(dataset: xr.Dataset) -> Figure:
    """Weighted cosine of the modes, mean over heads and seeds: layers up, steps to the right, a panel for each
    constraint."""
    names = list(dataset.constraint.values)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    values = dataset.weighted_cosine.mean("seed")
    with styled():
        figure = Figure(figsize=(WIDTH, 1.35 * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            image = axes.pcolormesh(
                np.append(0, dataset.step), np.arange(dataset.sizes["layer"] + 1) - 0.5, values.sel(constraint=name).T,
                cmap=DIVERGING, vmin=-1, vmax=1,
            )  # fmt: skip
            axes.set_title(literal(str(name)), fontsize=8)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(names) :]:
            axes.remove()
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("layer", fontsize=9)
        figure.colorbar(image, ax=panels[: len(names)].tolist(), label="weighted mean cosine")
        return figure
