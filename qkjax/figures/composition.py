"""Draws figures of the composition of heads: how strongly heads read what earlier heads write."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from qkjax.figures.style import COLOURS, DIVERGING, GREY, WIDTH, literal, styled

Scores = Float[np.ndarray, "sides from_layers from_heads to_layers to_heads"]


def composition_by_layer(name: str, sides: Sequence[str], score: Scores, by_chance: float) -> Figure:
    """Draws a map of the composition of each pair of layers, as the root mean square over the pairs of heads.

    The colour is the composition divided by that of random matrices. Pairs below the line are a control: the layer that
    reads is not later, so that it cannot read what the other layer writes. The ends of the colour scale include 99% of
    the pairs of layers.

    Args:
      name: name of the model.
      sides: names of the sides.
      score: composition of all pairs of heads.
      by_chance: composition of matrices with random directions, 1 / sqrt(D).
    """
    with np.errstate(invalid="ignore"):
        ratio = np.sqrt((score**2).mean((2, 4))) / by_chance
    layers = ratio.shape[1]
    limit = max(float(np.nanquantile(np.maximum(ratio, 1 / ratio), 0.99)), 1.1)
    with styled():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        panels = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
        for axes, side, values in zip(panels, sides, ratio, strict=True):
            image = axes.imshow(values.T, origin="lower", cmap=DIVERGING, norm=LogNorm(1 / limit, limit))
            axes.stairs(np.arange(layers) + 0.5, np.arange(layers + 1) - 0.5, baseline=None, color="black")
            axes.set(xlabel="layer that writes", title=f"{side} composition", xlim=(-0.5, layers - 0.5),
                     ylim=(-0.5, layers - 0.5))  # fmt: skip
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("layer that reads")
        bar = figure.colorbar(image, ax=panels, label="composition / random matrices", shrink=0.85, extend="both")
        bar.ax.yaxis.set_major_locator(
            FixedLocator((0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.4, 2, 3, 5, 10))
        )
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_locator(NullLocator())
        figure.suptitle(literal(f"{name}: below the black line, no path exists (control)"), fontsize=9)
        return figure


def composition_of_pairs(
    name: str,
    sides: Sequence[str],
    score: Scores,
    is_later: Bool[np.ndarray, "from_layers from_heads to_layers to_heads"],
    chance: Scores,
) -> Figure:
    """Draws the distribution of the composition over pairs of heads: the share of pairs above each value.

    One line shows pairs in which the head that reads is later. The other line shows all other pairs, which cannot
    compose.

    Args:
      name: name of the model.
      sides: names of the sides.
      score: composition of all pairs of heads.
      is_later: whether the head that reads is later.
      chance: the 95% quantile of each score for random directions.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
        for axes, side, own, limit in zip(panels, sides, score, chance, strict=True):
            for pairs, colour, line, label in (
                (is_later, COLOURS[0], "-", "the head that reads is later"),
                (~is_later, COLOURS[1], "--", "it is not later (control)"),
            ):
                values = np.sort(own[pairs & np.isfinite(own)])
                if len(values):
                    axes.plot(values, 1 - np.arange(len(values)) / len(values), line, color=colour, label=label)
            axes.axvspan(0, float(np.nanmedian(limit)), color=GREY, alpha=0.5, linewidth=0,
                         label="95% of random matrices (median over pairs)")  # fmt: skip
            axes.set(xlabel="composition", title=f"{side} composition", yscale="log", xlim=(0, None))
        panels[0].set_ylabel("share of pairs above")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(literal(name), fontsize=9)
        return figure
