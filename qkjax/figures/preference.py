"""Draws figures of attention preference (the paper's figures 2, 6 and S4) and of its relation to cosines of modes."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, GREY, MARKERS, WIDTH, literal, styled
from qkjax.results.rows import Row

KINDS = {"same": "same category", "different": "other category", "background": "background"}
PREFERENCES = {
    "similarity": "preference for similar tokens\n(cosine, minus that of uniform attention)",
    "same_over_different": "same over other category\n(log2 ratio, each relative to uniform)",
}


def _band(axes: Axes, rows: Sequence[Row], x: str, name: str, place: int, label: str) -> None:
    at, mean, low, high = (np.array([row[n] for row in rows]) for n in (x, name, f"{name}_low", f"{name}_high"))
    colour = COLOURS[place % len(COLOURS)]
    axes.plot(at, mean, marker=MARKERS[place % len(MARKERS)], color=colour, label=label, markersize=4)
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)


def preference_by_layer(models: Mapping[str, Sequence[Row]], frame: str = "") -> Figure:
    """Plots, by layer, attention to the query's own category, to the opposite category, and to the background.

    Attention is plotted as a share, and relative to uniform attention (the paper, figure 2 B-D). Bands are 95%
    intervals over images. For one model, each category is a line plotted against the layer. For several models, each
    category is a panel, and each model is a line plotted against relative depth.

    Args:
      models: a dict from model names to rows of `preference_table`.
      frame: the frame of the modes, such as "plain frame", for the legend of the figure of one model.
    """
    with styled():
        if len(models) == 1:
            return _one_model(*next(iter(models.items())), frame)
        figure = Figure(figsize=(WIDTH, 4.2 + 0.1 * len(models)), layout="constrained")
        panels = figure.subplots(2, 3, sharex=True, sharey="row")
        for column, (kind, title) in enumerate(KINDS.items()):
            for place, (name, rows) in enumerate(models.items()):
                for axes, suffix in zip(panels[:, column], ("", "_times_uniform"), strict=True):
                    _band(axes, rows, "relative_depth", kind + suffix, place, literal(name))
            panels[0, column].set_title(title)
            panels[1, column].set(xlabel="relative depth", yscale="log")
        panels[0, 0].set(ylabel="share of attention", ylim=(0, None))
        panels[1, 0].set_ylabel("attention / uniform attention")
        for axes in panels[1]:
            axes.axhline(1, color=GREY, linewidth=0.8, zorder=0)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return figure


def _cosine_label(label: str, frame: str, between: str = " ") -> str:
    """The label of a weighted cosine, with its frame if it is known."""
    return f"{label}{between}({frame})" if frame else label


def _one_model(name: str, rows: Sequence[Row], frame: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 3)
    for place, (kind, title) in enumerate(KINDS.items()):
        for axes, suffix in zip(panels, ("", "_times_uniform"), strict=False):
            _band(axes, rows, "layer", kind + suffix, place, title)
    panels[0].set(ylabel="share of attention", ylim=(0, 1))
    panels[1].set(ylabel="attention / uniform attention", yscale="log")
    panels[1].axhline(1, color=GREY, linewidth=0.8, zorder=0)
    _band(panels[2], rows, "layer", "similarity", 3, "preference for similar tokens")
    panels[2].plot([row["layer"] for row in rows], [row["weighted_cosine"] for row in rows], "v--", color=COLOURS[4],
                   markersize=4, label=_cosine_label("weighted cosine of the modes", frame))  # fmt: skip
    panels[2].axhline(0, color=GREY, linewidth=0.8, zorder=0)
    panels[2].set(ylabel="cosine")
    for axes in panels:
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(literal(name), fontsize=9)
    entries = [pair for axes in panels[1:] for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=3, frameon=False)
    return figure


def anisotropy_by_layer(name: str, rows: Sequence[Row], frame: str = "") -> Figure:
    """Plots anisotropy and the weighted cosine of the modes against layer (the paper, figure S4).

    Anisotropy is the mean cosine between the centre tokens of different images, in the residual stream or after the
    LayerNorm. Another line shows the weighted cosine minus the anisotropy of the residual stream.

    Args:
      name: name of the model.
      rows: rows of `preference_table`.
      frame: the frame of the modes, such as "plain frame", for the legend.
    """
    curves = {
        "anisotropy_residual": "anisotropy, residual stream", "anisotropy_norm": "anisotropy, LayerNorm output",
        "weighted_cosine": _cosine_label("weighted cosine of the modes", frame),
        "relative_cosine": "weighted cosine minus anisotropy",
    }  # fmt: skip
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=GREY, linewidth=0.8)
        for place, (field, label) in enumerate(curves.items()):
            line = "-" if place < 2 else "--"
            axes.plot([row["layer"] for row in rows], [row[field] for row in rows], line, color=COLOURS[place],
                      marker=MARKERS[place], markersize=4, label=label)  # fmt: skip
        axes.set(xlabel="layer", ylabel="cosine", title=literal(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure


def preference_links(
    name: str,
    weighted_cosine: Float[np.ndarray, "layers heads"],
    values: Mapping[str, Float[np.ndarray, "layers heads"]],
    rows: Sequence[Row],
    frame: str = "",
) -> Figure:
    """Plots the attention preferences of every head against the weighted cosine of its modes.

    The titles of the panels show Spearman's rank correlation.

    Args:
      name: name of the model.
      weighted_cosine: weighted cosine of the modes of each head.
      values: a dict from the keys of `PREFERENCES` to the preference of each head.
      rows: the rank correlations, with one row per preference.
      frame: the frame of the modes, such as "plain frame", for the label of the horizontal axis.
    """
    linked = {row["preference"]: row for row in rows}
    cosine = weighted_cosine.ravel()
    layers = np.repeat(np.arange(weighted_cosine.shape[0]), weighted_cosine.shape[1])
    with styled():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, len(PREFERENCES))
        for axes, (field, label) in zip(panels, PREFERENCES.items(), strict=True):
            points = axes.scatter(cosine, values[field].ravel(), c=layers, cmap="viridis", s=16)
            row = linked[field]
            axes.set_title(f"rank correlation {row['all_heads']:.2f} ({row['within_layers']:.2f} within layers)")
            axes.set(xlabel=_cosine_label("weighted cosine of the head's modes", frame, "\n"), ylabel=label)
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        figure.colorbar(points, ax=panels, label="layer")
        figure.suptitle(literal(name), fontsize=9)
        return figure


def same_object_by_layer(models: Mapping[str, Sequence[Row]]) -> Figure:
    """Plots, by layer, how often the query and the key of a mode are on the same object.

    The plotted probability is the mean over modes, weighted by singular values, with its 95% interval. The dotted line
    is the probability for two random objects (the paper, figure 6).

    Args:
      models: a dict from model names to rows of `objects_table`. For several models, the horizontal axis is relative
        depth.
    """
    x = "layer" if len(models) == 1 else "relative_depth"
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.1), layout="constrained")
        axes = figure.subplots()
        for place, (name, rows) in enumerate(models.items()):
            _band(axes, rows, x, "same", place, literal(name))
            colour = COLOURS[place % len(COLOURS)]
            axes.plot([row[x] for row in rows], [row["chance"] for row in rows], ":", color=colour)
        axes.plot([], [], ":", color=GREY if len(models) > 1 else colour, label="chance: two random objects")
        axes.set(xlabel=x.replace("_", " "), ylabel="probability of the same object", ylim=(0, 1))
        axes.legend(frameon=False)
        if x == "layer":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


def attended_example(
    name: str,
    picture: UInt8[np.ndarray, "height width 3"],
    maps: Float[np.ndarray, "layers queries rows columns"],
    layers: Sequence[int],
    place: Int[np.ndarray, "queries"],
) -> Figure:
    """Plots the attention of a target token and of a distractor token in one scene (the paper, figure 2 A).

    Each row shows the picture with a box around the token, and the attention of the token to the patches in some
    layers. Attention is averaged over heads, and each map is scaled to its maximum.
    """
    rows, columns = maps.shape[2:]
    high, wide = picture.shape[0] / rows, picture.shape[1] / columns
    with styled():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        panels = figure.subplots(len(place), 1 + len(layers), squeeze=False)
        for line, (own, token) in enumerate(zip(place, ("target", "distractor"), strict=True)):
            for axes in panels[line]:
                axes.set(xticks=[], yticks=[])
            down, right = divmod(int(own), columns)
            panels[line, 0].imshow(picture)
            panels[line, 0].set_ylabel(f"query: {token}")
            for axes, layer, values in zip(panels[line, 1:], layers, maps[:, line], strict=True):
                axes.imshow(picture.mean(-1), cmap="gray", vmin=-100, vmax=355)
                brightness = np.kron(values / values.max(), np.ones((int(high), int(wide))))
                axes.imshow(brightness, cmap="magma", alpha=0.1 + 0.85 * brightness, vmin=0, vmax=1)
                if line == 0:
                    axes.set_title(f"layer {layer}")
            for axes in panels[line]:
                axes.add_patch(_box((right * wide - 0.5, down * high - 0.5), wide, high))
        figure.suptitle(literal(f"{name}: attention of the boxed token, mean over heads"), fontsize=9)
        return figure


def _box(corner: tuple[float, float], width: float, height: float):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, edgecolor="#56B4E9", linewidth=1.5)
