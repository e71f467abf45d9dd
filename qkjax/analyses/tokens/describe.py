"""Makes tables and figures of map correlations, and of position and content in the logits."""

from collections.abc import Mapping

import xarray as xr

from qkjax import figures
from qkjax.analyses.outcome import Description
from qkjax.analyses.tokens.shares import head_shares, tokens_by_head, tokens_by_mode, tokens_table
from qkjax.results.rows import Row, format_rows

HEADINGS = {
    "layer": "layer", "weighted_cosine": "cosine", "folded_cosine": "folded", "map_correlation": "map corr",
    "content_map_correlation": "content", "position_map_correlation": "position", "content_content": "c-c",
    "position_position": "p-p", "mean_content": "m-c", "mean_position": "m-p",
}  # fmt: skip
LEGEND = """\
cosine, folded: weighted cosine in the plain frame and in the folded frame
map corr, content, position: map correlation of whole tokens and of their parts
c-c, p-p, m-c, m-p: shares in the variance of the logits between patches of
content-content, position-position, mean-content, mean-position (query-key)
"""


def describe(dataset: xr.Dataset) -> Description:
    """Makes tables by layer, by head and by mode, and figures.

    Args:
      dataset: the result of `token_statistics`.
    """
    name, rows = dataset.attrs["model"], tokens_table(dataset)
    short = [{title: row[column] for column, title in HEADINGS.items()} for row in rows]
    photographs = len(set(dataset.photograph.values.tolist()))
    text = (
        f"{dataset.sizes['image']} images of {dataset.attrs['images']}, which show {photographs} photographs\n{LEGEND}"
    )
    drawn = {
        "map_correlation": lambda: figures.map_correlation_by_layer(name, dataset),
        "position_and_content": lambda: figures.position_and_content(name, dataset, head_shares(dataset)),
    }
    tables = {"tokens": rows, "heads": tokens_by_head(dataset), "modes": tokens_by_mode(dataset)}
    return Description(text + format_rows(short), rows, tables, drawn)


def overlay(tables: Mapping[str, list[Row]]):
    """Plots the map correlation and the share of content of several models against relative depth."""
    return figures.tokens_of_models(tables)
