"""Draws figures of ablations: effects against dose, effects by layer and kind of mode, attention changes by layer."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkjax.figures.style import COLOURS, DIVERGING, GREY, MARKERS, WIDTH, literal, styled
from qkjax.results.intervals import interval
from qkjax.results.labels import RANDOM, READOUTS, TARGETED, in_words, interval_over
from qkjax.results.rows import Row

LABELS = {
    "representation": "representation\n(1 - cosine)",
    "tokens": "patch tokens\n(1 - cosine)",
    "logits": "logits\n(KL divergence, bits)",
    "attention": "attention\n(JS divergence, bits)",
    "class_attention": "class token's attention\n(JS divergence, bits)",
    "entropy": "attention entropy\n(change, bits)",
    "preference": "preference for similar\ntokens (change)",
    "head": "accuracy of\nthe classifier",
    "probe": "accuracy of\na linear probe",
    "neighbours": "accuracy of nearest\nneighbours",
}
CURVES = ("representation", "attention", "preference", "logits", "head", "probe")
"""Effects that have their own row of panels in a figure."""
SHARES = {"logits": "variance of the attention logits", "strength": "squared strength"}
"""What the share of a dose is a share of, in each measure."""
MOST = 6  # number of lines that a reader can distinguish


ABLATIONS = ("dose_response", "layer_map", "attention_by_layer")
"""Names of the figures of ablations."""


def ablation_figures(dataset: xr.Dataset, rows: Sequence[Row]) -> dict[str, Figure]:
    """Draws all figures for which there are enough ablations; returns a dict from names to figures."""
    drawn = {}
    if _curves(rows):
        drawn["dose_response"] = dose_response(rows)
    if len({row["layers"] for row in _one_layer(rows)}) > 1:
        drawn["layer_map"] = layer_map(rows)
    targeted = [row for row in rows if row["modes"] == TARGETED]
    if not drawn or len(targeted) <= MOST:
        drawn["attention_by_layer"] = attention_by_layer(dataset)
    return drawn


def _effects(rows: Sequence[Row]) -> list[str]:
    return [name for name in CURVES if name in rows[0]]


Column = tuple[str, str]
"""A column of panels: layers, and the measure of the dose."""


def _name(row: Row) -> str:
    return in_words(f"{row['edit']} {row['condition']}", row["key_bias"])


def _curves(rows: Sequence[Row]) -> dict[tuple[str, Column, str], list[Row]]:
    """Groups rows by condition, column, and kind of modes (targeted or random); keeps groups with two or more doses."""
    groups: dict[tuple[str, Column, str], list[Row]] = {}
    for row in rows:
        if np.isfinite(row["dose"]):
            groups.setdefault((_name(row), (row["layers"], row["match"]), row["modes"]), []).append(row)
    return {key: sorted(group, key=lambda row: row["share"]) for key, group in groups.items() if len(group) > 1}


def dose_response(rows: Sequence[Row]) -> Figure:
    """Plots the effects of ablations against their dose: the share of each head that an edit changes.

    The figure has one column of panels per range of layers and measure of the dose, and one row of panels per effect.
    Solid lines show targeted modes, dashed lines show random modes of matched size, and bands are 95% intervals.

    Args:
      rows: rows of `ablation_table`.
    """
    groups, effects = _curves(rows), _effects(rows)
    columns = sorted(dict.fromkeys(key[1] for key in groups), key=lambda column: column[1])
    names = list(dict.fromkeys(key[0] for key in groups))
    with styled():
        width = min(2.3, max(1.4, (WIDTH - 1.2) / len(columns))) * len(columns) + 1.2
        size = (max(WIDTH * 0.6, width), 1.55 * len(effects) + 1.1)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(effects), len(columns), sharex="col", sharey="row", squeeze=False)
        shared, drawn = _same_controls(groups), set()
        for (name, column, modes), group in groups.items():
            colour, marker = (x[names.index(name) % len(x)] for x in (COLOURS, MARKERS))
            if modes == RANDOM and shared:
                if column in drawn:
                    continue
                drawn.add(column)
                colour = "#606060"
            for effect, axes in zip(effects, panels[:, columns.index(column)], strict=True):
                _band(axes, group, effect, colour, marker if modes == TARGETED else None, _kind(group[0], shared))
        for effect, line in zip(effects, panels, strict=True):
            line[0].set_ylabel(LABELS[effect])
            for axes in line:
                axes.axhline(rows[0][effect], color="black", linewidth=0.8, linestyle=":", label="unedited")
        _label_columns(figure, panels, columns, rows[0])
        return figure


def _label_columns(figure: Figure, panels: np.ndarray, columns: Sequence[Column], row: Row) -> None:
    """Adds titles of columns, the label of the dose, and a legend."""
    measures = {match for _, match in columns}
    for (layers, match), axes, last in zip(columns, panels[0], panels[-1], strict=True):
        axes.set_title(f"layer{'' if layers.isdecimal() else 's'} {layers}" if layers else "all layers")
        if len(measures) > 1:
            last.set_xlabel(textwrap.fill(f"share of the {SHARES[match]}", 24))
    dose = f"changed share of the heads' {SHARES[min(measures)]}\n" if len(measures) == 1 else ""
    figure.supxlabel(f"{dose}bands: 95% intervals over {interval_over(row)} and random draws", fontsize=9)
    entries = [axes.get_legend_handles_labels() for axes in panels[0]]
    handles = {label: handle for pair in entries for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), map(literal, handles), loc="outside upper center", ncols=2, frameon=False)


def _kind(row: Row, same_controls: bool) -> str:
    """The label of a row. A control is named after the edit that it matches, unless all edits share controls."""
    if row["modes"] == TARGETED:
        return _name(row)
    return "random, of matched size" if same_controls else f"random, matched to {_name(row)}"


def _same_controls(groups: Mapping[tuple[str, Column, str], list[Row]]) -> bool:
    """Whether all conditions have the same controls. Conditions share controls if their changed shares are equal."""
    values: dict[Column, set] = {}
    for (_, column, modes), group in groups.items():
        if modes == RANDOM:
            values.setdefault(column, set()).add(tuple(row["representation"] for row in group))
    return all(len(distinct) == 1 for distinct in values.values())


def _band(axes: Axes, group: Sequence[Row], effect: str, colour: str, marker: str | None, label: str) -> None:
    names = ("share", effect, f"{effect}_low", f"{effect}_high")
    x, mean, low, high = (np.array([row[name] for row in group]) for name in names)
    axes.plot(x, mean, "-" if marker else "--", marker=marker, color=colour, label=label, markersize=4)
    axes.fill_between(x, low, high, color=colour, alpha=0.18 if marker else 0.12, linewidth=0)


def _one_layer(rows: Sequence[Row]) -> list[Row]:
    """For each condition and each layer, the ablation of this single layer that has the largest changed share.

    If the plan contains several measures of the dose, only ablations in the measure of the first are used.
    """
    largest: dict[tuple[str, str, str], Row] = {}
    single = [row for row in rows if row["layers"].isdecimal()]
    for row in (row for row in single if row["match"] == single[0]["match"]):
        key = (_name(row), row["layers"], row["modes"])
        if key not in largest or row["share"] > largest[key]["share"]:
            largest[key] = row
    return list(largest.values())


def layer_map(rows: Sequence[Row]) -> Figure:
    """Draws a map of the effects of editing one layer at a time, with one panel per effect.

    In each panel, columns are layers, and rows are edits and controls.

    Args:
      rows: rows of `ablation_table`. The figure shows the ablations that edit a single layer. If a layer is edited with
        several shares, the figure shows only the largest share, and if shares are measured in several ways, only those
        in the measure of the first ablation.
    """
    single, effects = _one_layer(rows), _effects(rows)
    layers = sorted({int(row["layers"]) for row in single})
    shared = _same_controls({(_name(row), (row["layers"], row["match"]), row["modes"]): [row] for row in single})
    targeted_first = sorted(single, key=lambda row: row["modes"] == RANDOM)
    kinds = list(dict.fromkeys(_kind(row, shared) for row in targeted_first))
    shares = sorted({f"{row['share']:.2g}" for row in single}, key=float)
    with styled():
        figure = Figure(figsize=(WIDTH, (0.27 * len(kinds) + 0.55) * len(effects) + 0.6), layout="constrained")
        panels = figure.subplots(len(effects), 1, sharex=True, squeeze=False)[:, 0]
        for effect, axes in zip(effects, panels, strict=True):
            values = np.full((len(kinds), len(layers)), np.nan)
            for row in single:
                values[kinds.index(_kind(row, shared)), layers.index(int(row["layers"]))] = row[effect]
            accuracy = effect in READOUTS
            values = values - rows[0][effect] if accuracy else values
            signed = accuracy or effect == "preference"
            limit = np.nanmax(np.abs(values)) or 1
            colours, lowest = (DIVERGING, -limit) if signed else ("viridis", 0)
            image = axes.imshow(values, aspect="auto", cmap=colours, vmin=lowest, vmax=limit)
            axes.set_yticks(range(len(kinds)), [literal(kind) for kind in kinds])
            axes.set_xticks(range(len(layers)), layers)
            figure.colorbar(image, ax=axes, label=LABELS[effect] + "\n(change)" * accuracy, pad=0.01)
        panels[-1].set_xlabel("edited layer")
        share = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
        what = SHARES[single[0]["match"]]
        figure.suptitle(f"one layer edited at a time: {share} of its heads' {what}", fontsize=9)
        return figure


def attention_by_layer(dataset: xr.Dataset) -> Figure:
    """Plots the change of attention by layer, for the first six targeted ablations and their controls.

    The panels show the divergence of attention, the change of its entropy, and the change of the preference for similar
    tokens. Bands are 95% intervals over groups of images (for controls, also over random draws).

    Args:
      dataset: the result of `ablate`.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    several = len(np.unique(dataset.match.values[1:])) > 1
    for index in range(1, dataset.sizes["ablation"]):
        one = dataset.isel(ablation=index)
        name = in_words(f"{one.edit.item()} {one.select.item()}", one.key_bias.item())
        name += f" (matched on {one.match.item()})" if several else ""
        groups.setdefault((name, one.control.item() >= 0), []).append(index)
    names = list(dict.fromkeys(name for name, _ in groups))[:MOST]
    own = {name: dataset[name].mean("head").values.astype(np.float64) for name in ("attention_entropy", "preference")}
    changes = {
        "attention": dataset.attention_js.mean("head").values.astype(np.float64),
        "entropy": own["attention_entropy"] - own["attention_entropy"][:1],
        "preference": own["preference"] - own["preference"][:1],
    }
    with styled():
        visible = sum(name in names for name, _ in groups)
        figure = Figure(figsize=(WIDTH, 2.5 + 0.16 * visible), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, (effect, values) in zip(panels, changes.items(), strict=True):
            axes.axhline(0, color=GREY, linewidth=0.8)
            for (name, random), indices in groups.items():
                if name in names:
                    _by_layer(axes, values[indices], dataset.group.values, names.index(name), random, name)
            axes.set(xlabel="layer", title=LABELS[effect])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        count = {"groups": len(np.unique(dataset.group)), "interval_unit": dataset.attrs["interval_unit"]}
        figure.suptitle(f"bands: 95% intervals over {interval_over(count)} and random draws", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, map(literal, labels), loc="outside lower center", ncols=2, frameon=False)
        return figure


def _by_layer(axes: Axes, values, groups, place: int, random: bool, name: str) -> None:
    """Draws the mean of `values` (draws, images, layers) against layer, with a 95% interval over groups of images."""
    layers = np.arange(values.shape[-1])
    mean, low, high = np.transpose([interval(values[..., layer], groups) for layer in layers])
    colour = COLOURS[place % len(COLOURS)]
    label = f"random, matched to {name}" if random else name
    axes.plot(layers, mean, "--" if random else "-", color=colour, label=label)
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
