"""Labelled variables and a table of what is expected of each head by chance, and of directionality."""

import numpy as np
import xarray as xr

from qkjax.interaction.directionality import Directionality
from qkjax.interaction.head_null import DEFAULT, NULLS, READINGS, HeadNull, readings
from qkjax.interaction.metrics import Metrics
from qkjax.results.annotate import Label
from qkjax.results.rows import Row, head_mean
from qkjax.results.store import texts

HEAD_WIDTH, LAYER_WIDTH = "null_weighted_cosine_width", "null_layer_weighted_cosine_width"
_WIDTH = "Half width of the interval about 0 that contains 95% of values by chance, for"
CHANCE_LABELS = {
    HEAD_WIDTH: Label("weighted cosine, by chance", "1", f"{_WIDTH} weighted_cosine of a head."),
    LAYER_WIDTH: Label("weighted cosine of a layer, by chance", "1", f"{_WIDTH} the mean over the heads of a layer."),
    "directionality": Label("directionality", "1", "Excess of column norms over row norms of M (arXiv 2502.10927)."),
    "null_directionality_width": Label("directionality, by chance", "1", f"{_WIDTH} directionality of a head."),
    "layer_directionality": Label("directionality of a layer", "1", "Directionality of the sum of M over heads."),
    "null_layer_directionality_width": Label("directionality of a layer, by chance", "1", f"{_WIDTH} the sum of M."),
    "layer_symmetry_score": Label(
        "symmetry score of a layer", "1", "From -1 to 1, for the sum of M over heads (arXiv 2502.10927)."
    ),
}
_DIRECTIONS = {
    "directionality": "directionality",
    "null_directionality_width": "directionality_width",
    "layer_directionality": "layer_directionality",
    "null_layer_directionality_width": "layer_directionality_width",
    "layer_symmetry_score": "layer_symmetry_score",
}


def with_chance(dataset: xr.Dataset, head_null: HeadNull, directions: Directionality) -> xr.Dataset:
    """Adds the intervals of each head and layer and the directionality to a dataset; the caller annotates it.

    The coordinate `null` has the names in `NULLS`. The attribute `null_default` names the null of tables and figures.
    """
    per_head = ("layer", "head")
    variables = {HEAD_WIDTH: (("null", *per_head), head_null.head), LAYER_WIDTH: (("null", "layer"), head_null.layer)}
    for name, field in _DIRECTIONS.items():
        value = np.asarray(getattr(directions, field))
        variables[name] = (per_head[: value.ndim], value)
    return dataset.assign(variables).assign_coords(null=texts(NULLS)).assign_attrs(null_default=DEFAULT)


def head_null_of(dataset: xr.Dataset) -> HeadNull | None:
    """Reads the intervals of each head from a dataset. Results of earlier versions have none."""
    if HEAD_WIDTH not in dataset:
        return None
    chosen = dataset.sel(null=list(NULLS))
    return HeadNull(chosen[HEAD_WIDTH].values, chosen[LAYER_WIDTH].values)


def chance_columns(metrics: Metrics) -> list[Row]:
    """Columns with one row per layer: counts of heads by `readings`, and the half widths for the mean over heads."""
    null, head, layer = metrics.chance()
    words = readings(metrics.weighted_cosine, head)
    widths = {} if metrics.head_null is None else dict(zip(NULLS, metrics.head_null.layer, strict=True))
    return [
        {
            **{f"{word.split()[-1]}_heads": int((words[i] == word).sum()) for word in READINGS},
            "null_weighted_cosine": float(layer[i]),
            **{f"null_{name}": float(values[i]) for name, values in (widths or {null: layer}).items()},
        }
        for i in range(len(layer))
    ]


def direction_columns(dataset: xr.Dataset) -> list[Row]:
    """Columns with one row per layer: directionality and symmetry score as in arXiv 2502.10927; empty if not stored."""
    if "layer_directionality" not in dataset:
        return [{} for _ in range(dataset.sizes["layer"])]
    columns = {
        "directionality": head_mean(dataset.directionality.values),
        "layer_directionality": dataset.layer_directionality.values,
        "null_layer_directionality": dataset.null_layer_directionality_width.values,
        "layer_symmetry_score": dataset.layer_symmetry_score.values,
    }
    return [{name: float(x[i]) for name, x in columns.items()} for i in range(dataset.sizes["layer"])]


def head_rows(dataset: xr.Dataset, metrics: Metrics) -> list[Row]:
    """A table with one row per head: the weighted cosine, what it is by chance, and the scores of arXiv 2502.10927.

    The column `reading` states whether the weighted cosine lies above, within or below the interval of the default
    null. Columns that start with `null_` are half widths of intervals about 0.
    """
    null, width, _ = metrics.chance()
    weighted, share = np.asarray(metrics.weighted_cosine, float), np.asarray(metrics.symmetric_share, float)
    words = readings(weighted, width)
    columns = {"weighted_cosine": weighted, "effective_rank": np.asarray(metrics.effective_rank, float)}
    widths = {null: width} if metrics.head_null is None else dict(zip(NULLS, metrics.head_null.head, strict=True))
    columns |= {f"null_{name}": values for name, values in widths.items()}
    columns |= {"symmetric_share": share, "symmetry_score": 2 * share - 1}
    if "directionality" in dataset:
        columns["directionality"] = dataset.directionality.values
        columns["null_directionality"] = dataset.null_directionality_width.values
    return [
        {"layer": layer, "head": head, "reading": str(words[layer, head])}
        | {name: float(values[layer, head]) for name, values in columns.items()}
        for layer, head in np.ndindex(*weighted.shape)
    ]
