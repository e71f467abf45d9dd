"""Measures how the interaction depends on positions, for models with rotary positions, and describes the result."""

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.decomposition import folded_kernels
from qkjax.analyses.outcome import Description
from qkjax.interaction.bias import BiasTerms
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.bias import mean_bias_terms
from qkjax.interaction.rotary.measures import PositionMeasures, measure_positions
from qkjax.results.position_tables import distance_rows, format_positions, head_rows, offset_rows, plane_rows
from qkjax.results.positions import positions_of


def position_measures(parts: QueryKey, fold_scale: bool = False, center: bool = False) -> PositionMeasures:
    """Measures how the interaction of every head depends on positions, in the given frame.

    Args:
      parts: parameters with a rotation.
      fold_scale, center: options that define M; see `decompose`.

    Raises:
      QkjaxError: the grid has a single position.
    """
    return measure_positions(*folded_kernels(parts, fold_scale, center), parts.rotation)


def mean_bias(parts: QueryKey) -> BiasTerms:
    """The bias terms of a model with rotary positions, as means over positions; see `mean_bias_terms`."""
    folded = folded_kernels(parts, fold_scale=True, center=bool(parts.norm_centers))
    terms = mean_bias_terms(*parts[:4], folded, parts.rotation)
    return BiasTerms(*map(np.asarray, terms))


def describe(dataset: xr.Dataset) -> Description:
    """Makes tables and figures of the dependence on position, from the result of `analyze` for a rotary model."""
    measures = positions_of(dataset)
    name = f"{dataset.attrs['model']} ({' x '.join(map(str, measures.grid))} patches)"
    return Description(
        format_positions(measures),
        [],
        {
            "positions": head_rows(measures),
            "planes": plane_rows(measures),
            "distance": distance_rows(measures),
            "offsets": offset_rows(measures),
        },
        {
            "position_share": lambda: figures.position_share(name, measures),
            "position_share_by_plane": lambda: figures.position_share_by_plane(name, measures),
            "cosine_by_distance": lambda: figures.cosine_by_distance(name, measures),
            "cosine_by_offset": lambda: figures.cosine_by_offset(name, measures),
        },
    )
