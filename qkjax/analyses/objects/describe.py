"""Makes a table and a figure of how often the query and the key of a mode are on the same object."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.objects.tables import objects_table
from qkjax.analyses.outcome import Description
from qkjax.results.rows import Row, format_rows


def describe(dataset: xr.Dataset, name: str) -> Description:
    """Makes a table with one row per layer, and a figure.

    Args:
      dataset: the result of `same_object`.
      name: name of the model.
    """
    rows = objects_table(dataset)
    used = int(np.count_nonzero(dataset.objects))
    text = f"{used} images of {dataset.attrs['images']}\n{format_rows(rows)}"
    return Description(text, rows, {"objects": rows}, {"same_object": lambda: overlay({name: rows})})


def overlay(tables: Mapping[str, list[Row]]):
    """Plots, for one or more models, how often query and key are on the same object in each layer."""
    return figures.same_object_by_layer(tables)
