"""Draws figures of map correlations, and of position and content in the attention logits."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.layers import draw_heads
from qkjax.figures.style import COLOURS, GREY, MARKERS, WIDTH, literal, styled
from qkjax.results.rows import Row, head_mean

CURVES = {
    "weighted_cosine": ("weighted cosine, plain frame", "--"),
    "folded_cosine": ("weighted cosine, folded frame", "--"),
    "whole": ("map correlation", "-"),
    "content": ("map correlation, content alone", "-"),
    "position": ("map correlation, position alone", ":"),
}
BAND = "95% of layers with random kernels (map correlation)"
SHARES = {
    "content of query, content of key": (COLOURS[0], 5),
    "content of query, position of key": (COLOURS[5], 4),
    "position of query, content of key": (COLOURS[2], 3),
    "position of query, position of key": (COLOURS[4], 2),
    "mean query, content of key": (COLOURS[3], 1),
    "mean query, position of key": (COLOURS[1], 0),
}
"""The colour of each share, and its place in the six parts of the variance of the logits."""
PANELS = {
    "map_correlation": "map correlation",
    "content_content": "share of content-content\nin the variance of logits",
}


def map_correlation_by_layer(name: str, dataset: xr.Dataset) -> Figure:
    """Plots the map correlation and, for comparison, the weighted cosine in two frames, by layer. Dots are heads.

    The band is the 95% interval of the map correlation of a layer with random kernels.

    Args:
      name: name of the model.
      dataset: the result of `qkjax.token_statistics`.
    """
    layers = np.arange(dataset.sizes["layer"])
    values = {field: dataset[field].values for field in ("weighted_cosine", "folded_cosine")}
    values |= {part: dataset.head_map_correlation.sel(part=part).values for part in ("whole", "content", "position")}
    null = dataset.null_map_correlation.sel(part="whole", scope="layer").values
    with styled():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, first, last in zip(panels, (0, 2), (3, 5), strict=True):
            axes.fill_between(layers, -null, null, color=GREY, alpha=0.6, linewidth=0, label=BAND)
            for place, (field, (label, line)) in list(enumerate(CURVES.items()))[first:last]:
                _curve(axes, layers, values[field], place, label, line)
            axes.set(xlabel="layer", ylim=(None, 1.02))
            axes.axhline(0, color="black", linewidth=0.6, zorder=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set(ylabel="cosine, or correlation of maps", title="what weights allow, and what tokens meet")
        panels[1].set_title("whole tokens and their parts")
        drawn = {}
        for axes in panels:
            handles, labels = axes.get_legend_handles_labels()
            drawn |= dict(zip(labels, handles, strict=True))
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(literal(name), fontsize=9)
        return figure


def _curve(axes: Axes, layers: np.ndarray, values: np.ndarray, place: int, label: str, line: str) -> None:
    """Draws the mean over heads as a line, and every head as a faint dot."""
    colour, marker = COLOURS[place], MARKERS[place]
    axes.plot(np.repeat(layers, values.shape[1]), values.ravel(), ".", color=colour, alpha=0.25, markersize=4, zorder=1)
    axes.plot(layers, head_mean(values), line, marker=marker, color=colour, label=label, markersize=4, zorder=3)


def position_and_content(name: str, dataset: xr.Dataset, shares: Float[np.ndarray, "layers heads pairs"]) -> Figure:
    """Plots the shares of position and content in the variance of the logits, by layer and by head.

    Bars are means over heads. The map shows the share of content-content in every head.

    Args:
      name: name of the model.
      dataset: the result of `qkjax.token_statistics`.
      shares: the shares of the six parts in every head, for the logits between patches.
    """
    layers, means = np.arange(len(shares)), head_mean(np.moveaxis(shares, -1, -2))
    with styled():
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        up, down = np.zeros(len(layers)), np.zeros(len(layers))
        for label, (colour, part) in SHARES.items():
            values = np.nan_to_num(means[:, part])
            bottom = np.where(values < 0, down, up)
            left.bar(layers, values, 0.85, bottom, color=colour, label=label)
            up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
        left.axhline(0, color="black", linewidth=0.6)
        left.set(xlabel="layer", ylabel="share of the variance of logits", title="mean over heads")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_xlim(-0.6, len(layers) - 0.4)
        image = draw_heads(right, shares[..., 5], "viridis", 0.0)
        right.set_title("content of query, content of key")
        figure.colorbar(image, ax=right, label="share")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(literal(f"{name}: logits between patches of an image, centred over keys"), fontsize=9)
        return figure


def tokens_of_models(models: Mapping[str, Sequence[Row]]) -> Figure:
    """Plots the map correlation and the share of content-content of several models against relative depth.

    Args:
      models: a dict from model names to rows of the table by layer.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 3.0 + 0.1 * len(models)), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, (field, label) in zip(panels, PANELS.items(), strict=True):
            for place, (name, rows) in enumerate(models.items()):
                colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
                x, y = ([row[column] for row in rows] for column in ("relative_depth", field))
                axes.plot(x, y, marker=marker, color=colour, markersize=4, label=literal(name))
                if f"{field}_low" in rows[0]:
                    low, high = ([row[f"{field}_{end}"] for row in rows] for end in ("low", "high"))
                    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.set(xlabel="relative depth", ylabel=label)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure
