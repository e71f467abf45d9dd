"""Draws figures in which one axis is the layer."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, DIVERGING, GREY, WIDTH, literal, look, styled
from qkjax.interaction.difference import Difference
from qkjax.interaction.head_null import NULLS, READINGS, readings
from qkjax.interaction.metrics import Metrics
from qkjax.results.rows import head_mean


def _curve(axes: Axes, x, head_values, label: str, style: Mapping[str, str]) -> None:
    """Draws a line through the means over heads, and a faint dot for every head, in a style returned by `look`."""
    values = np.asarray(head_values)
    dots = np.repeat(x, values.shape[1]), values.ravel()
    axes.plot(*dots, ".", color=style["color"], alpha=0.25, markersize=4, zorder=1)
    axes.plot(x, head_mean(values), label=label, markersize=4.5, zorder=3, **style)


def _bands(axes: Axes, models: Sequence[Metrics], field: str) -> None:
    """Draws the intervals expected by chance, for two random directions and for a layer.

    For the weighted cosine of one model, the interval of a layer is that of the default null, which differs between
    layers. If there are several models, the function draws the widest interval of each kind.
    """
    directions = max(metrics.null.cosine for metrics in models)
    widest = ", widest model" if len(models) > 1 else ""
    label = f"95% of random directions (±{directions:.2f}{widest})"
    axes.axhspan(-directions, directions, color=GREY, alpha=0.35, linewidth=0, label=label, zorder=0)
    if len(models) == 1 and field == "weighted_cosine":
        _layer_band(axes, models[0])
    else:
        null, width = _widest(models, field)
        which = "weighted" if field == "weighted_cosine" else "plain"
        label = f"95% of layers, {which}: {null} null (±{width:.3f}{widest})"
        axes.axhspan(-width, width, color=GREY, linewidth=0, label=label, zorder=0)
    axes.set_ylim(-1, 1)


def _layer_band(axes: Axes, metrics: Metrics) -> None:
    """Draws the interval of the default null for each layer; the legend states the intervals of all nulls."""
    default, _, width = metrics.chance()
    layers = {default: width} if metrics.head_null is None else dict(zip(NULLS, metrics.head_null.layer, strict=True))
    words = []
    for null, widths in layers.items():
        finite = widths[np.isfinite(widths)]
        ends = dict.fromkeys(f"{end:.3f}" for end in (finite.min(initial=np.inf), finite.max(initial=0)))
        words.append(f"{null} ±{' to '.join(ends)}" + (" (drawn)" if null == default and len(layers) > 1 else ""))
    label = "95% of layers by chance: " + ", ".join(words[:2]) + "".join(f",\n{word}" for word in words[2:])
    x = np.arange(len(width))
    edges = np.repeat(np.append(x - 0.5, x[-1] + 0.5), 2)[1:-1]
    half = np.repeat(np.nan_to_num(width), 2)
    axes.fill_between(edges, -half, half, color=GREY, linewidth=0, label=label, zorder=0)


def _widest(models: Sequence[Metrics], field: str) -> tuple[str, float]:
    """The nulls, and the half width of the widest interval, for the mean over heads of any layer of several models."""
    if field != "weighted_cosine":
        return "gaussian", max(getattr(metrics.null, field) for metrics in models)
    chance = [metrics.chance() for metrics in models]
    width = max(float(np.max(layer, where=np.isfinite(layer), initial=0)) for _, _, layer in chance)
    return " or ".join(dict.fromkeys(null for null, _, _ in chance)), width


def cosine_by_layer(
    models: Mapping[str, Metrics], objectives: Mapping[str, str] | None = None, frame: str = ""
) -> Figure:
    """Plots the weighted mean and the plain mean of the cosines of modes against layer (the paper's figure 3).

    For one model, both curves are drawn in one panel against the index of the layer. For several models, there is one
    panel for the weighted mean and one panel for the plain mean, against relative depth (0 for the first layer, 1 for
    the last). Dots are heads. Bands are the 95% intervals expected by chance (for several models, the widest
    intervals).

    Args:
      models: a dict from model names to measures of the modes.
      objectives: a dict from model names to training objectives. Models with the same objective have the same colour.
      frame: the frame of the modes, such as "plain frame", for the label of the vertical axis.
    """
    with styled():
        if len(models) == 1:
            return _one_model(*next(iter(models.items())), frame)
        figure = Figure(figsize=(WIDTH, 3.4 + 0.08 * len(models)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        groups = {name: objectives[name] if objectives else name for name in models}
        colours = {group: index for index, group in enumerate(dict.fromkeys(groups.values()))}
        titles = {"weighted_cosine": "weighted by singular value", "mean_cosine": "plain mean"}
        for axes, (field, title) in zip(panels, titles.items(), strict=True):
            members: Counter[str] = Counter()
            for name, metrics in models.items():
                values, group = getattr(metrics, field), groups[name]
                label = literal(f"{name} ({group})" if objectives else name)
                _curve(axes, np.linspace(0, 1, len(values)), values, label, look(colours[group], members[group]))
                members[group] += 1
            _bands(axes, list(models.values()), field)
            axes.set(xlabel="relative depth", title=title)
        panels[0].set_ylabel(_cosine_label(frame))
        (handles, labels), (others, names) = (axes.get_legend_handles_labels() for axes in panels)
        handles, labels = [*handles, others[-1]], [*labels, names[-1]]  # the last one is the band of a layer
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        return figure


def _cosine_label(frame: str) -> str:
    return "cosine of query and key direction" + (f"\n({frame})" if frame else "")


def _one_model(name: str, metrics: Metrics, frame: str) -> Figure:
    figure = Figure(figsize=(WIDTH * 0.75, 3.2), layout="constrained")
    axes = figure.subplots()
    layers = np.arange(len(metrics.weighted_cosine))
    _curve(axes, layers, metrics.weighted_cosine, "weighted by singular value", look(0))
    _curve(axes, layers, metrics.mean_cosine, "plain mean", look(1) | {"linestyle": "--"})
    _bands(axes, [metrics], "weighted_cosine")
    axes.set(xlabel="layer", ylabel=_cosine_label(frame), title=literal(name))
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower left")
    return figure


def draw_heads(axes: Axes, values, colours: str, lowest: float) -> AxesImage:
    """Draws a map with one cell per head: layers from left to right, heads from bottom to top.

    The colour scale ranges from `lowest` to 1.
    """
    values = np.asarray(values).T
    image = axes.imshow(values, cmap=colours, vmin=lowest, vmax=1, origin="lower", aspect="auto")
    axes.set(xlabel="layer", ylabel="head")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    return image


def head_map(name: str, metrics: Metrics) -> Figure:
    """Draws a map of every head's weighted mean cosine: layers from left to right, heads from bottom to top.

    Heads that lie within the interval expected by chance are hatched.
    """
    values = np.asarray(metrics.weighted_cosine).T
    heads, layers = values.shape
    cell = min(0.55, WIDTH / layers)
    with styled():
        figure = Figure(
            figsize=(max(cell * layers + 1.6, 4), max(cell * 0.75 * heads + 1.4, 2.4)), layout="constrained"
        )
        axes = figure.subplots()
        image = draw_heads(axes, metrics.weighted_cosine, DIVERGING, -1.0)
        if cell > 0.4:
            for (head, layer), value in np.ndenumerate(values):
                colour = "white" if abs(value) > 0.6 else "black"
                text = f"{value:.2f}".replace("-0.00", "0.00")
                axes.text(layer, head, text, ha="center", va="center", fontsize=7, color=colour)
        null, width, _ = metrics.chance()
        for layer, head in np.argwhere(readings(metrics.weighted_cosine, width) == READINGS[1]):
            corner = (layer - 0.5, head - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor=GREY, linewidth=0))
        axes.set_title(literal(f"{name}\nhatched: within chance ({null} null, 95% of single heads)"))
        figure.colorbar(image, label="weighted mean cosine")
        return figure


def difference_map(first: str, second: str, difference: Difference, frame: str = "") -> Figure:
    """Draws maps, in three panels, of how much the heads of two models differ.

    The panels show the similarity <M, M'> / (||M|| ||M'||), the overlap of the query spaces, and the overlap of the key
    spaces. An overlap is the mean squared cosine of the principal angles between the spaces of the two models.
    """
    heading = f"{second} compared with {first}" + (f" ({frame})" if frame else "")
    overlaps = [(np.asarray(x) ** 2).mean(-1) for x in (difference.query_angles, difference.key_angles)]
    with styled():
        figure = Figure(figsize=(WIDTH * 1.2, 3.0), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        titles = ("similarity of M", "overlap of query spaces", "overlap of key spaces")
        for axes, values, title in zip(panels, (difference.similarity, *overlaps), titles, strict=True):
            signed = values is difference.similarity
            image = draw_heads(axes, values, DIVERGING if signed else "viridis", -1.0 if signed else 0.0)
            axes.set_title(title)
            figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
        for axes in panels[1:]:
            axes.set_ylabel("")
        figure.suptitle(literal(heading), fontsize=9)
        return figure


def symmetry_by_layer(name: str, metrics: Metrics) -> Figure:
    """Plots, against layer, the shares of ||M||_F^2 that are in the symmetric and in the antisymmetric part of M.

    Bars are means over heads, and dots are single heads.
    """
    shares = np.asarray(metrics.symmetric_share)
    layers, mean = np.arange(len(shares)), head_mean(shares)
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.bar(layers, mean, color=COLOURS[5], label="symmetric", width=0.85)
        axes.bar(layers, 1 - mean, bottom=mean, color=COLOURS[4], label="antisymmetric", width=0.85)
        axes.plot(np.repeat(layers, shares.shape[1]), shares.ravel(), ".", color="black", markersize=4, label="heads")
        axes.axhline(0.5, color="black", linewidth=1, linestyle=":", label="expected for random kernels")
        axes.set(
            xlabel="layer",
            ylabel="share of the squared norm of M",
            title=literal(name),
            ylim=(0, 1),
            xlim=(-0.6, len(layers) - 0.4),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure
