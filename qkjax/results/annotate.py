"""Adds labels to the variables and dimensions of results, so that each xarray.Dataset describes itself."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr


class Label(NamedTuple):
    """The label of a variable or dimension.

    Attributes:
      long_name: label for the axes of plots.
      units: unit of the values, or "1" if they have no unit.
      description: a one-line description.
    """

    long_name: str
    units: str
    description: str


DIMENSIONS = {
    "layer": Label("layer", "1", "Layer, counted from 0."),
    "head": Label("head", "1", "Attention head of a layer, counted from 0."),
    "mode": Label("mode", "1", "Mode of a head, counted from 0 for the strongest mode."),
    "mapped_mode": Label("mode with maps", "1", "Mode of a head, counted from 0 for the strongest mode."),
    "embed": Label("embedding dimension", "1", "Index of a dimension of the token embedding."),
    "eigen": Label("eigenvalue", "1", "Index of the eigenvalue in descending order, counted from 0."),
    "pair": Label("eigenvalue pair", "1", "Index of the imaginary eigenvalue pair, largest first, counted from 0."),
    "sign": Label("sign of the mode", "1", "1 for (u, v), -1 for (-u, -v); both are the same mode."),
    "place": Label("rank", "1", "Rank of the image for the mode; 0 is the best."),
    "null": Label("null", "1", "What a random head has in common with the head; see qkjax.interaction.head_null."),
    "score": Label("score", "1", "Score that ranks the images; see qkjax.activations.scores."),
    "image": Label("image", "1", "Name of the image in its image set."),
    "query": Label("query", "1", "Region of the image that contains the query token."),
    "region": Label("region", "1", "Region of the image."),
    "stream": Label("stream", "1", "Whether tokens are taken before (residual) or after (norm) the LayerNorm."),
    "ablation": Label("ablation", "1", "Index of the ablation; 0 is the unedited model."),
    "broken": Label("unreadable image", "1", "Index among images that could not be read, counted from 0."),
    "missing": Label("image left out", "1", "Index among images that were left out, counted from 0."),
    "row": Label("row of patches", "1", "Row of the patch grid, from the top."),
    "column": Label("column of patches", "1", "Column of the patch grid, from the left."),
}


def annotated(dataset: xr.Dataset, labels: Mapping[str, Label]) -> xr.Dataset:
    """Adds `long_name`, `units` and `description` to every variable, and a coordinate to every dimension.

    Args:
      dataset: the dataset.
      labels: labels of the variables, and of coordinates that are not dimensions.

    Raises:
      KeyError: a variable or a dimension has no label.
    """
    without = [name for name in dataset.sizes if name not in dataset.coords]
    dataset = dataset.assign_coords({name: np.arange(dataset.sizes[name]) for name in without})
    for name in dataset.variables:
        label = labels[name] if name in labels else DIMENSIONS[str(name)]
        dataset[name].attrs.update(label._asdict())
    return dataset
