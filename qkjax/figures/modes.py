"""Draws figures that show every mode."""

from math import ceil

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from qkjax.figures.style import COLOURS, DIVERGING, GREY, WIDTH, literal, styled
from qkjax.interaction.metrics import Metrics


def cosine_histograms(name: str, metrics: Metrics) -> Figure:
    """Plots a histogram of the cosines of all modes, with one panel per layer (the paper's figure S1).

    The grey band contains 95% of the cosines of two random directions. The vertical line is the unweighted mean over
    all modes, including degenerate modes. Degenerate modes, for which single cosines are not uniquely defined, are
    light blue.
    """
    cosine, degenerate = np.asarray(metrics.cosine), np.asarray(metrics.degenerate)
    layers = len(cosine)
    columns = min(4, layers)
    rows = ceil(layers / columns)
    bins = np.linspace(-1, 1, 41)
    with styled():
        figure = Figure(figsize=(WIDTH, 1.25 * rows + 0.8), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for layer, axes in enumerate(panels[:layers]):
            kinds = [cosine[layer][chosen] for chosen in (~degenerate[layer], degenerate[layer])]
            kinds = [kind[np.isfinite(kind)] for kind in kinds]
            count = max(sum(kind.size for kind in kinds), 1)
            defined, rest = (np.histogram(kind, bins)[0] / count for kind in kinds)
            axes.axvspan(-metrics.null.cosine, metrics.null.cosine, color=GREY, alpha=0.6, linewidth=0)
            axes.stairs(defined, bins, fill=True, color=COLOURS[0], linewidth=0)
            if rest.any():
                axes.stairs(defined + rest, bins, baseline=defined, fill=True, color=COLOURS[5], linewidth=0)
            axes.axvline(np.concatenate(kinds).sum() / count, color=COLOURS[1], linewidth=1.2)
            axes.text(0.04, 0.9, f"layer {layer}", transform=axes.transAxes, va="top", fontsize=8)
            axes.set(xlim=(-1, 1), xticks=(-1, 0, 1))
        for axes in panels[layers:]:
            axes.axis("off")
        for axes in panels[max(layers - columns, 0) : layers]:
            axes.tick_params(labelbottom=True)
        key = "grey: 95% of random directions; line: mean; light blue: degenerate modes, single cosines undefined"
        figure.supxlabel(f"cosine of query and key direction\n({key})", fontsize=9)
        figure.supylabel("share of modes", fontsize=9)
        figure.suptitle(literal(name), fontsize=9)
        return figure


def spectra(name: str, metrics: Metrics) -> Figure:
    """Plots the singular value and the cosine of every mode, with one cell per head (the paper's figure S2).

    In each cell, modes are arranged from left to right, strongest first. The grey area shows s_n / s_1, from the middle
    line (0) to the top (1). A dot shows the cosine of a mode by its height, from the bottom (-1) to the top (1) of the
    cell, and by its colour. Degenerate modes, for which single cosines are not uniquely defined, have no dots.
    """
    s, cosine = np.asarray(metrics.singular_value), np.asarray(metrics.cosine)
    layers, heads, rank = s.shape
    half, width = 0.44, 0.92  # half the height, and the width, of the drawing inside a cell of size 1
    x = np.broadcast_to(np.arange(heads)[:, None] + width * (np.arange(rank) + 0.5) / rank - width / 2, s.shape)
    middle = np.broadcast_to(np.arange(layers)[:, None, None], s.shape)
    with np.errstate(invalid="ignore"):
        height = np.nan_to_num(s / s[..., :1])
    with styled():
        figure = Figure(figsize=(max(WIDTH, 0.85 * heads + 1.5), max(3, 0.68 * layers + 1.2)), layout="constrained")
        axes = figure.subplots()
        outline = np.stack([x, middle - half * height], -1).reshape(-1, rank, 2)
        floor = np.stack([x, middle], -1).reshape(-1, rank, 2)[:, ::-1]
        axes.add_collection(PolyCollection(np.concatenate([outline, floor], 1), facecolor=GREY, edgecolor="none"))
        edges = [(h, m) for m in range(layers) for h in range(heads)]
        axes.add_collection(
            LineCollection([[(h - width / 2, m), (h + width / 2, m)] for h, m in edges], color="black", lw=0.4)
        )
        boxes = [[(h + i * width / 2, m + j * half) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))] for h, m in edges]
        axes.add_collection(PolyCollection(boxes, facecolor="none", edgecolor=GREY, linewidth=0.5))
        clear = ~np.asarray(metrics.degenerate)
        dots = axes.scatter(
            x[clear], (middle - half * cosine)[clear], c=cosine[clear], cmap=DIVERGING, vmin=-1, vmax=1,
            s=5, linewidth=0.2, edgecolor="black", rasterized=True, zorder=3,
        )  # fmt: skip
        axes.set(
            xlim=(-0.5, heads - 0.5),
            ylim=(layers - 0.5, -0.5),
            xlabel="head (within a cell: modes, strongest first)",
            ylabel="layer",
            title=literal(name),
        )
        axes.set(xticks=range(heads), yticks=range(layers))
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        label = "dots: cosine of query and key direction (cell: -1 to 1)"
        label += "\ngrey: singular value / largest (middle line: 0, top: 1)"
        figure.colorbar(dots, label=label, shrink=min(1, 4.5 / figure.get_figheight()), aspect=30)
        return figure
