"""Draws how the interaction of heads with rotary positions depends on the positions of queries and keys."""

from itertools import pairwise
from math import ceil

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, DIVERGING, GREY, MARKERS, WIDTH, literal, styled
from qkjax.interaction.rotary.measures import PositionMeasures
from qkjax.results.rows import head_mean

CURVES = 6
"""Largest number of curves in a figure; if there are more layers, each curve is the mean of several layers."""
PANELS = 12
"""Largest number of maps in a figure."""


def _groups(layers: int, most: int) -> dict[str, slice]:
    """Divides the layers into groups of neighbours; returns a dict from the name of each group to its layers."""
    ends = np.linspace(0, layers, min(layers, most) + 1).round().astype(int)
    pairs = list(pairwise(ends))
    return {f"layer {a}" if b - a == 1 else f"layers {a}-{b - 1}": slice(a, b) for a, b in pairs}


def _layer_mean(values: np.ndarray) -> np.ndarray:
    """The mean over layers (first axis) whose value is finite."""
    return head_mean(np.moveaxis(values, 0, -1))


def position_share(name: str, measures: PositionMeasures) -> Figure:
    """Plots, against layer, the share of the interaction that depends on position.

    Bars are means over heads, and are divided into the parts that depend on offsets along columns and along rows. Dots
    are single heads. The grey band is the interval that is expected by chance for a layer.
    """
    share, null = np.asarray(measures.share.share), measures.null
    layers, parts = np.arange(len(share)), [head_mean(measures.share.axis[..., axis]) for axis in (0, 1)]
    low, high = null.share - null.share_width.layer, null.share + null.share_width.layer
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.bar(layers, parts[0], color=COLOURS[5], label="depends on the row offset", width=0.85)
        axes.bar(layers, parts[1], bottom=parts[0], color=COLOURS[4], label="depends on the column offset", width=0.85)
        jointly = head_mean(share) - parts[0] - parts[1]
        if np.nanmax(np.abs(jointly), initial=0) > 1e-3:
            axes.bar(layers, jointly, bottom=parts[0] + parts[1], color=COLOURS[3], label="depends on both", width=0.85)
        axes.plot(np.repeat(layers, share.shape[1]), share.ravel(), ".", color="black", markersize=4, label="heads")
        axes.axhspan(low, high, color="black", alpha=0.15, linewidth=0, zorder=2)
        axes.axhline(
            null.share, color="black", linewidth=1, linestyle=":", label="random kernels (band: 95% of layers)"
        )
        axes.set(
            xlabel="layer",
            ylabel="share that depends on position",
            title=literal(name),
            ylim=(0, 1),
            xlim=(-0.6, len(layers) - 0.4),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure


def position_share_by_plane(name: str, measures: PositionMeasures) -> Figure:
    """Draws a map of the contribution of each plane to the share that depends on position: mean over heads.

    Layers are from bottom to top, and planes from left to right. Below the map, a strip shows the values that are
    expected by chance, and a curve shows c of each plane.
    """
    values, chance = head_mean(np.swapaxes(measures.share.contribution, 1, 2)), measures.null.contribution
    layers, planes = values.shape
    high = max(np.nanmax(values, initial=0), chance.max(), 1e-6)
    with styled():
        figure = Figure(figsize=(WIDTH, min(1.9 + 0.18 * layers, 8)), layout="constrained")
        heights = (max(layers, 3), 1.3, 3)
        panels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": heights})
        style = {"cmap": "viridis", "vmin": 0, "vmax": high, "aspect": "auto", "origin": "lower"}
        image = panels[0].imshow(values, **style)
        panels[0].set(ylabel="layer", title=literal(name))
        panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].imshow(chance[None], **style)
        panels[1].set(yticks=(0,), yticklabels=("chance",))
        panels[2].plot(np.arange(planes), measures.coherence, ".-", color=COLOURS[0])
        panels[2].set(ylim=(-0.05, 1.05), ylabel="c", xlabel=_axis_label(measures))
        panels[2].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        figure.colorbar(image, ax=panels[:2], label="contribution to the share")
        return figure


def _axis_label(measures: PositionMeasures) -> str:
    """States which planes rotate with the row and with the column, if these are two halves."""
    rows, columns = (np.flatnonzero(np.abs(step) > 1e-9) for step in measures.step)
    if not len(rows) or not len(columns) or set(rows) & set(columns):
        return "plane"
    return f"plane (rows: {rows.min()} to {rows.max()}, columns: {columns.min()} to {columns.max()}; c = 0: positional)"


def cosine_by_distance(name: str, measures: PositionMeasures) -> Figure:
    """Plots the weighted cosine of M(offset) against the distance between query and key.

    Each curve is the mean over the heads of a layer or of a group of layers. The grey band contains 95% of layers with
    random kernels and the same rotation.
    """
    curve, null = measures.curve, measures.null.curve_width
    groups = _groups(len(curve.value), CURVES)
    colours = colormaps["viridis"](np.linspace(0, 0.87, len(groups)))
    means = head_mean(np.swapaxes(curve.value, 1, 2))
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(
            curve.distance, -null.layer, null.layer, color=GREY, linewidth=0, label="95% of layers, random kernels"
        )
        for (label, group), colour, marker in zip(groups.items(), colours, MARKERS, strict=False):
            value = _layer_mean(means[group])
            axes.plot(curve.distance, value, marker=marker, markersize=3.5, color=colour, label=label, linewidth=1.3)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(
            xlabel="distance between query and key in patches",
            ylabel="weighted cosine of M(offset)",
            title=literal(name),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return figure


def cosine_by_offset(name: str, measures: PositionMeasures) -> Figure:
    """Draws maps of the weighted cosine of M(offset) over the plane of offsets, one per layer or group of layers.

    The key is in the middle of each map, and the position in the map is that of the query. Maps are means over heads.
    Two lines on the colour scale mark the interval that is expected by chance for a layer at a single offset.
    """
    groups = _groups(len(measures.cosine), PANELS)
    maps = head_mean(np.moveaxis(measures.cosine, 1, -1))
    maps = {label: _layer_mean(maps[group]) for label, group in groups.items()}
    high = max(*(np.nanmax(np.abs(values), initial=0) for values in maps.values()), 1e-6, 0.01)
    rows, columns = measures.grid
    across = min(4, len(maps))
    down = ceil(len(maps) / across)
    extent = (0.5 - columns, columns - 0.5, rows - 0.5, 0.5 - rows)
    height = min(1.3 * (2 * rows - 1) / (2 * columns - 1), 4)  # in inches, at a width of 1.3 inches
    with styled():
        figure = Figure(figsize=(WIDTH, max((height + 0.3) * down + 1.0, 2.8)), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (label, values) in zip(panels, maps.items(), strict=False):
            image = axes.imshow(values, cmap=DIVERGING, vmin=-high, vmax=high, extent=extent)
            axes.plot(0, 0, "+", color="black", markersize=5, markeredgewidth=0.8)
            axes.set_title(label, pad=3)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        for axes in panels[len(maps) :]:
            axes.axis("off")
        bar = figure.colorbar(image, ax=list(panels), label="weighted cosine of M(offset)")
        width = measures.null.cosine_width.layer
        for side in (-width, width):
            bar.ax.axhline(side, color="black", linewidth=0.8)
        figure.supxlabel(
            "column offset (query minus key, in patches)\n"
            f"(lines on the scale: 95% of layers with random kernels, ±{width:.3f})",
            fontsize=9,
        )
        figure.supylabel("row offset", fontsize=9)
        figure.suptitle(literal(name), fontsize=9)
        return figure
