"""Makes tables and figures of attention sinks."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.outcome import Description
from qkjax.analyses.sinks.tables import head_rows, kinds_of, layer_rows, stage_rows
from qkjax.results.rows import Row, format_rows

HEADINGS = {
    "class": "class", "class_without_bias": "no bias", "class_value": "value", "registers": "registers",
    "registers_without_bias": "no bias ", "registers_value": "value ", "top_patch": "patch",
    "top_patch_without_bias": "no bias  ", "top_patch_value": "value  ", "entropy": "entropy",
}  # fmt: skip


def describe(dataset: xr.Dataset) -> Description:
    """Makes tables by layer, by head and by stage of the residual stream, and two figures.

    Args:
      dataset: the result of `attention_sinks`.
    """
    name, layers, stages = dataset.attrs["model"], layer_rows(dataset), stage_rows(dataset)
    short = [
        {"layer": row["layer"]} | {title: row[column] for column, title in HEADINGS.items() if column in row}
        for row in layers
    ]
    high = [row for row in stages if np.isfinite(row["high_norm"])]
    text = f"{format_rows(short)}\nshare of attention under uniform attention: {dataset.attrs['uniform']:.4f}"
    if high:
        columns = ("stage", "patch_median", "high_norm", "high_norm_share", "valley", "valley_high")
        text += f"\npatches of high norm:\n{format_rows([{key: row[key] for key in columns} for row in high])}"
    return Description(
        text,
        layers,
        {"sinks": layers, "heads": head_rows(dataset), "norms": stages},
        {
            "sinks_by_layer": lambda: overlay({name: layers}),
            "token_norms": lambda: figures.token_norms(name, stages),
            "sink_heads": lambda: figures.sink_heads(
                name, {kind: shares_of(dataset, index) for kind, index in kinds_of(dataset).items()}
            ),
        },
    )


def shares_of(dataset: xr.Dataset, index: list[int]) -> np.ndarray:
    """The mean share over images of the keys with the given indices, for each head."""
    return dataset.share.isel(key=index).sum("key").mean("image").transpose("layer", "head").values


def overlay(tables: Mapping[str, list[Row]]):
    """Plots the share of each kind of key against layer, for one or more models."""
    return figures.sinks_by_layer(tables)
