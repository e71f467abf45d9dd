"""Figures with the layers along an axis."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, DIVERGING, GREY, MARKERS, WIDTH, styled
from qkjax.interaction.metrics import Metrics
from qkjax.results import head_mean


def _curve(axes: Axes, x, head_values, label: str, index: int, dashed: bool = False) -> None:
    """A line through the means over heads, and a faint dot for every head."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    values = np.asarray(head_values)
    axes.plot(np.repeat(x, values.shape[1]), values.ravel(), ".", color=colour, alpha=0.25, markersize=4, zorder=1)
    line = "--" if dashed else "-"
    axes.plot(x, head_mean(values), line, marker=marker, color=colour, label=label, markersize=4.5, zorder=3)


def _bands(axes: Axes, directions: float, kernels: float) -> None:
    """What chance gives, as half widths: one pair of random directions, a layer of random kernels."""
    for half_width, alpha, what in (
        (directions, 0.35, f"two random directions, 95% (±{directions:.2f})"),
        (kernels, 1.0, f"layer of random kernels, 95% (±{kernels:.3f})"),
    ):
        axes.axhspan(-half_width, half_width, color=GREY, alpha=alpha, linewidth=0, label=what, zorder=0)
    axes.set_ylim(-1, 1)


def cosine_by_layer(models: Mapping[str, Metrics]) -> Figure:
    """Weighted and plain mean cosine of the modes against layer (the paper's figure 3).

    One model: both curves against the layer's number. Several: a panel each for the weighted and
    the plain mean, against relative depth (0 first layer, 1 last). Dots are heads; the bands hold
    95% of what chance gives (of several models, the widest).
    """
    with styled():
        if len(models) == 1:
            ((name, metrics),) = models.items()
            figure = Figure(figsize=(WIDTH * 0.75, 3.2), layout="constrained")
            axes = figure.subplots()
            layers = np.arange(len(metrics.weighted_cosine))
            _curve(axes, layers, metrics.weighted_cosine, "weighted by singular value", 0)
            _curve(axes, layers, metrics.mean_cosine, "plain mean", 1, dashed=True)
            _bands(axes, metrics.null.cosine, max(metrics.null.weighted_cosine, metrics.null.mean_cosine))
            axes.set(xlabel="layer", ylabel="cosine of query and key direction", title=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False, loc="lower left")
            return figure
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, field, title in zip(
            panels, ("weighted_cosine", "mean_cosine"), ("weighted by singular value", "plain mean"), strict=True
        ):
            for index, (name, metrics) in enumerate(models.items()):
                values = getattr(metrics, field)
                _curve(axes, np.linspace(0, 1, len(values)), values, name, index)
            nulls = [m.null for m in models.values()]
            _bands(axes, max(n.cosine for n in nulls), max(n.weighted_cosine for n in nulls))
            axes.set(xlabel="relative depth", title=title)
        panels[0].set_ylabel("cosine of query and key direction")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure


def head_map(name: str, metrics: Metrics) -> Figure:
    """Weighted mean cosine of every head: heads up, layers to the right."""
    values = np.asarray(metrics.weighted_cosine).T
    heads, layers = values.shape
    cell = min(0.55, WIDTH / layers)
    with styled():
        figure = Figure(
            figsize=(max(cell * layers + 1.6, 4), max(cell * 0.75 * heads + 1.2, 2.2)), layout="constrained"
        )
        axes = figure.subplots()
        image = axes.imshow(values, cmap=DIVERGING, vmin=-1, vmax=1, origin="lower", aspect="auto")
        if cell > 0.4:
            for (head, layer), value in np.ndenumerate(values):
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(
                    layer,
                    head,
                    f"{value:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
        axes.set(xlabel="layer", ylabel="head", title=name)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        figure.colorbar(image, label="weighted mean cosine")
        return figure


def symmetry_by_layer(name: str, metrics: Metrics) -> Figure:
    """Share of ||M||_F^2 in the symmetric and antisymmetric part, mean over heads; dots are heads."""
    shares = np.asarray(metrics.symmetric_share)
    layers, mean = np.arange(len(shares)), head_mean(shares)
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.bar(layers, mean, color=COLOURS[5], label="symmetric", width=0.85)
        axes.bar(layers, 1 - mean, bottom=mean, color=COLOURS[4], label="antisymmetric", width=0.85)
        axes.plot(np.repeat(layers, shares.shape[1]), shares.ravel(), ".", color="black", markersize=4, label="heads")
        axes.axhline(0.5, color="black", linewidth=1, linestyle=":", label="random kernels")
        axes.set(
            xlabel="layer",
            ylabel="share of the squared norm of M",
            title=name,
            ylim=(0, 1),
            xlim=(-0.6, len(layers) - 0.4),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure
