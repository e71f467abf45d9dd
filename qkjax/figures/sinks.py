"""Draws figures of attention sinks, and of the norms of tokens."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, MARKERS, WIDTH, literal, styled
from qkjax.results.rows import Row

KINDS = {"class": "class token", "registers": "registers", "top_patch": "top patch"}


INTERVAL = "95% interval over photographs"


def sinks_by_layer(models: Mapping[str, Sequence[Row]]) -> Figure:
    """Plots the share of the patches' attention on each kind of key against layer, with and without the key bias.

    There is one panel per kind of key. Solid lines are the model's attention, with its 95% interval over photographs;
    dashed lines are the attention without the key bias of the layer. For several models, the horizontal axis is
    relative depth.

    Args:
      models: a dict from model names to rows by layer, as in sinks.csv.
    """
    kinds = [kind for kind in KINDS if any(kind in rows[0] for rows in models.values())]
    with styled():
        figure = Figure(figsize=(WIDTH, 2.8 + 0.1 * len(models)), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for place, (name, rows) in enumerate(models.items()):
                if kind not in rows[0]:
                    continue
                colour = COLOURS[place % len(COLOURS)]
                scale = 1 if len(models) == 1 else 1 / max(len(rows) - 1, 1)
                at = [row["layer"] * scale for row in rows]
                values, low, high = ([row[f"{kind}{end}"] for row in rows] for end in ("", "_low", "_high"))
                axes.plot(at, values, marker=MARKERS[place % len(MARKERS)], color=colour, markersize=4,
                          label=literal(name))  # fmt: skip
                axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0, label=INTERVAL)
                if f"{kind}_without_bias" in rows[0]:
                    axes.plot(at, [row[f"{kind}_without_bias"] for row in rows], "--", color=colour,
                              label=literal(f"{name}, without the key bias"))  # fmt: skip
            axes.set(xlabel="layer" if len(models) == 1 else "relative depth", title=KINDS[kind], ylim=(0, None))
            if len(models) == 1:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("share of the patches' attention\n(mean over heads)")
        entries = {
            label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, frameon=False)
        return figure


def token_norms(name: str, rows: Sequence[Row]) -> Figure:
    """Plots the norm of each kind of token in the residual stream against the stage.

    The last stage is after the last layer. If there are patches of high norm at a stage, a cross marks the norm above
    which they lie.

    Args:
      name: name of the model.
      rows: rows by stage, as in norms.csv.
    """
    special = [column for column in rows[0] if column.endswith("_token") or column.startswith("register")]
    columns = {column: column.replace("_", " ") for column in special}
    columns |= {"patch_median": "patches, median", "patch_99": "patches, 99%", "patch_largest": "patches, largest"}
    with styled():
        figure = Figure(figsize=(WIDTH * 0.75, 3.2), layout="constrained")
        axes = figure.subplots()
        stages = [row["stage"] for row in rows]
        for place, (column, label) in enumerate(columns.items()):
            axes.plot(stages, [row[column] for row in rows], "--" if column.startswith("patch_") else "-", label=label,
                      color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
                      markersize=4)  # fmt: skip
        high = np.array([row["high_norm"] for row in rows])
        if np.isfinite(high).any():
            axes.plot(stages, high, "x", color="black", label="patches above have a high norm")
        axes.set(xlabel="stage of the residual stream (before layer)", ylabel="norm", yscale="log", title=literal(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
        return figure


def sink_heads(name: str, shares: Mapping[str, Float[np.ndarray, "layers heads"]]) -> Figure:
    """Draws maps of the share of attention that each kind of key receives in each head.

    Args:
      name: name of the model.
      shares: a dict from kinds of keys to the share in each head.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
        most = max(float(values.max()) for values in shares.values())
        for axes, (kind, values) in zip(panels, shares.items(), strict=True):
            image = axes.imshow(values.T, cmap="viridis", vmin=0, vmax=most, origin="lower", aspect="auto")
            axes.set(xlabel="layer", title=KINDS[kind])
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("head")
        figure.colorbar(image, ax=panels, label="share of attention")
        figure.suptitle(literal(name), fontsize=9)
        return figure
