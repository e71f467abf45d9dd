"""Converts the composition of heads to a labelled dataset and to tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qkjax.interaction.composition import Composition
from qkjax.results.annotate import Label, annotated
from qkjax.results.rows import Row
from qkjax.results.store import versions

PAIR = ("from_layer", "from_head", "to_layer", "to_head")
LABELS = {
    "side": Label("side", "1", "What the later head computes from the written direction: queries, keys or values."),
    "from_layer": Label("layer that writes", "1", "Layer of the head that writes, counted from 0."),
    "from_head": Label("head that writes", "1", "Head that writes, counted from 0."),
    "to_layer": Label("layer that reads", "1", "Layer of the head that reads, counted from 0."),
    "to_head": Label("head that reads", "1", "Head that reads, counted from 0."),
    "score": Label(
        "composition", "1", "||W M||_F / (||W||_F ||M||_F) of the head that writes and the head that reads."
    ),
    "chance": Label("95% quantile by chance", "1", "95% quantile of the score for random directions."),
    "deviation": Label("deviation", "1", "Squared score minus its mean by chance, in standard deviations by chance."),
    "from_mode": Label("written mode", "1", "Output-value mode of the pair of modes with the largest share."),
    "to_mode": Label("read mode", "1", "Mode of the head that reads, of the pair of modes with the largest share."),
    "mode_share": Label("share of the modes", "1", "Share of this pair of modes in the squared score."),
    "mode_cosine": Label("cosine of the modes", "1", "Magnitude of the cosine between written and read direction."),
}
STRONGEST = 50
"""Number of pairs of heads of each side in the table of the strongest pairs."""


def composition_dataset(pairs: Composition, sides: Sequence[str], attrs: Mapping) -> xr.Dataset:
    """Collects the composition of all pairs of heads in a dataset.

    Args:
      pairs: arrays of shape (sides, from_layers, from_heads, to_layers, to_heads).
      sides: names of the sides.
      attrs: attributes of the dataset.
    """
    variables = {name: (("side", *PAIR), np.asarray(value)) for name, value in pairs._asdict().items()}
    dataset = xr.Dataset(variables, {"side": ("side", list(sides))}, {**attrs, **versions()})
    dataset = annotated(dataset, LABELS)
    return dataset.assign_attrs(summary=summary(dataset))


def is_later(dataset: xr.Dataset) -> np.ndarray:
    """Whether the head that reads is in a later layer than the head that writes, for each pair of heads."""
    shape = [dataset.sizes[name] for name in PAIR]
    layers = np.arange(shape[0])
    return np.broadcast_to((layers[:, None] < layers)[:, None, :, None], shape)


def side_rows(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per side, over the pairs in which the head that reads is later, and over all other pairs.

    `above` is the share of pairs whose score exceeds the 95% quantile by chance, and `mean` is the mean score. Columns
    that end in `_control` are those of the pairs in which the head that reads is not later.
    """
    later, rows = is_later(dataset), []
    for side in dataset.side.values:
        own = dataset.sel(side=side)
        row: Row = {"side": str(side)}
        for suffix, pairs in (("", later), ("_control", ~later)):
            score, chance = own.score.values[pairs], own.chance.values[pairs]
            known = np.isfinite(score)
            row |= {
                f"pairs{suffix}": int(known.sum()),
                f"mean{suffix}": float(score[known].mean()) if known.any() else np.nan,
                f"above{suffix}": float((score > chance)[known].mean()) if known.any() else np.nan,
            }
        rows.append(row | {"mean_by_chance": float(dataset.attrs["mean_by_chance"])})
    return rows


def layer_rows(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per side and pair of layers: the mean and the largest score over the pairs of heads.

    `can_read` is 1 if the layer that reads is later.
    """
    score = dataset.score.values
    return [
        {"side": str(side), "from_layer": i, "to_layer": j, "can_read": int(i < j), "mean": float(pairs.mean()),
         "largest": float(pairs.max()), "mean_by_chance": float(dataset.attrs["mean_by_chance"])}
        for index, side in enumerate(dataset.side.values)
        for i in range(score.shape[1])
        for j in range(score.shape[3])
        for pairs in [score[index, i, :, j]]
    ]  # fmt: skip


def strongest_rows(dataset: xr.Dataset, count: int = STRONGEST) -> list[Row]:
    """A table of the pairs with the largest scores of each side, among pairs in which the head that reads is later."""
    later, rows = is_later(dataset), []
    for side in dataset.side.values:
        own = {name: dataset[name].sel(side=side).values for name in Composition._fields}
        score = np.where(later & np.isfinite(own["score"]), own["score"], -np.inf)
        for flat in np.argsort(-score, axis=None, kind="stable")[:count]:
            place = np.unravel_index(flat, score.shape)
            if np.isfinite(score[place]):
                row: Row = {"side": str(side), **dict(zip(PAIR, map(int, place), strict=True))}
                rows.append(row | {name: value[place].item() for name, value in own.items()})
    return rows


def summary(dataset: xr.Dataset) -> str:
    """Summarises the result in words: how many pairs compose more than by chance, and the strongest pair."""
    rows = [row for row in side_rows(dataset) if row["pairs"]]
    if not rows:
        return "The model has no pair of heads in which one head can read what the other writes."
    shares, controls = (
        ", ".join(f"{row[column]:.0%} ({row['side']})" for row in rows) for column in ("above", "above_control")
    )
    strongest = max(strongest_rows(dataset, 1), key=lambda row: row["score"])
    return (
        f"The composition of an earlier and a later head exceeds the 95% quantile of random matrices in {shares} of "
        f"the pairs (chance: 5%). In the control, pairs in which the second head is not later and cannot read what "
        f"the first head writes, it does so in {controls}. The strongest pair is "
        f"L{strongest['from_layer']} H{strongest['from_head']} to "
        f"L{strongest['to_layer']} H{strongest['to_head']} ({strongest['side']}), with a composition of "
        f"{strongest['score']:.2f} (random matrices: {dataset.attrs['mean_by_chance']:.3f}, 95% below "
        f"{strongest['chance']:.3f})."
    )
