"""Labelled variables for the measures of rotary positions in modes.nc, and their tables."""

import json
from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.interaction.rotary.chance import RotaryNull, Width
from qkjax.interaction.rotary.distance import ByDistance
from qkjax.interaction.rotary.isotropy import Isotropy
from qkjax.interaction.rotary.measures import PositionMeasures
from qkjax.interaction.rotary.place import PlaceShare
from qkjax.results.annotate import Label

HEAD, PLANE, AXIS = ("layer", "head"), ("plane",), ("axis",)
MAP = (*HEAD, "row_offset", "column_offset")
AXES = ("row", "column")
WIDTHS = ("head", "layer")

POSITION_LABELS = {
    "plane": Label("plane", "1", "Plane of two columns of a head, counted from 0."),
    "axis": Label("axis", "1", "Axis of the patch grid."),
    "row_offset": Label("row offset", "patches", "Row of the query minus row of the key."),
    "column_offset": Label("column offset", "patches", "Column of the query minus column of the key."),
    "distance": Label("distance", "patches", "Distance between query and key, rounded to whole patches."),
    "coherence": Label("coherence", "1", "c = |mean of exp(i theta)|^2 of each plane: 0 if purely positional."),
    "plane_step": Label("angle of a step", "rad", "Angle by which one step along each axis rotates each plane."),
    "position_share": Label("share that depends on position", "1", "1 - ||Mbar||^2 / mean of ||M(offset)||^2."),
    "position_share_of_plane": Label("contribution of the plane", "1", "Part of position_share; planes add up to it."),
    "position_share_within_plane": Label("share within the plane", "1", "position_share of each plane by itself."),
    "position_share_of_axis": Label("contribution of the axis", "1", "Part that depends on offsets along one axis."),
    "offset_cosine": Label("weighted cosine", "1", "Weighted cosine of M(offset), for every offset of the grid."),
    "distance_cosine": Label("weighted cosine", "1", "Mean of offset_cosine over all pairs at a distance."),
    "distance_pairs": Label("pairs of positions", "1", "Number of pairs of positions at each distance."),
    "isotropic_share": Label("isotropic share", "1", "Share of the variation of offset_cosine due to distance alone."),
    "odd_share": Label("odd share", "1", "Share of the variation of offset_cosine that changes sign with the offset."),
    "axis_cosine": Label("weighted cosine along the axis", "1", "Mean of offset_cosine along each axis alone."),
    "side_difference": Label("difference of sides", "1", "Mean of offset_cosine, positive minus negative offsets."),
}
"""Labels of the variables and coordinates that modes.nc has for models with rotary positions."""

ROTARY_BIAS_LABELS = {
    "bias_query_direction": Label("query bias direction", "1", "Mean over positions of Wq R(offset) bk."),
    "bias_key_direction": Label("key bias direction", "1", "Mean over positions of Wk R(offset)^T bq."),
    "bias_constant": Label("bias constant", "1", "Mean over positions of bq R(offset) bk."),
    "bias_interaction_spread": Label("spread of the interaction", "logit", "Over tokens and positions."),
    "bias_query_spread": Label("spread of the query bias", "logit", "Over tokens and positions."),
    "bias_key_spread": Label("spread of the key bias", "logit", "Over tokens and positions."),
}
"""Labels of the bias terms, which depend on positions if a model has rotary positions."""

_SHARES = {"share": "position_share", "contribution": "position_share_of_plane",
           "within_plane": "position_share_within_plane", "axis": "position_share_of_axis"}  # fmt: skip
_DIRECTIONS = {"isotropic": "isotropic_share", "odd": "odd_share", "along": "axis_cosine",
               "ahead": "side_difference"}  # fmt: skip
DIMENSIONS = {
    "coherence": PLANE,
    "plane_step": ("axis", "plane"),
    "position_share": HEAD,
    "position_share_of_plane": (*HEAD, *PLANE),
    "position_share_within_plane": (*HEAD, *PLANE),
    "position_share_of_axis": (*HEAD, *AXIS),
    "offset_cosine": MAP,
    "distance_cosine": (*HEAD, "distance"),
    "distance_pairs": ("distance",),
    "isotropic_share": HEAD,
    "odd_share": HEAD,
    "axis_cosine": (*HEAD, *AXIS),
    "side_difference": (*HEAD, *AXIS),
}
"""Dimensions of each variable."""
_NULLS = {  # name in the dataset, field of `RotaryNull`, dimensions
    **{f"null_{name}": (field, DIMENSIONS[name][2:]) for field, name in _SHARES.items()},
    **{f"null_{name}_width": (f"{field}_width", DIMENSIONS[name][2:]) for field, name in _SHARES.items()},
    "null_offset_cosine_width": ("cosine_width", ()),
    "null_distance_cosine_width": ("curve_width", ("distance",)),
    "null_isotropic_share": ("isotropic", ()),
    "null_isotropic_share_end": ("isotropic_end", ()),
    "null_odd_share": ("odd", ()),
    "null_odd_share_end": ("odd_end", ()),
    "null_axis_cosine_width": ("along_width", AXIS),
    "null_side_difference_width": ("ahead_width", AXIS),
}


def _null_label(name: str) -> Label:
    of = name.removeprefix("null_").removesuffix("_width").removesuffix("_end")
    label = POSITION_LABELS[of]
    if name.endswith("_width"):
        what = "Half width of the interval that contains 95% of values by chance"
    elif name.endswith("_end"):
        what = "Upper end of the one-sided interval that contains 95% of values by chance"
    else:
        what = "Value expected by chance"
    return Label(f"{label.long_name}, by chance", label.units, f"{what}, for {of} with random kernels.")


POSITION_LABELS |= {name: _null_label(name) for name in _NULLS}
POSITION_LABELS["scope"] = Label("scope", "1", "One head, or the mean over the heads of a layer.")


def position_dataset(measures: PositionMeasures) -> xr.Dataset:
    """Collects the measures of rotary positions in a dataset without labels, to be merged with that of the modes."""
    values = {
        "coherence": measures.coherence,
        "plane_step": measures.step,
        **{name: getattr(measures.share, field) for field, name in _SHARES.items()},
        "offset_cosine": measures.cosine,
        "distance_cosine": measures.curve.value,
        "distance_pairs": measures.curve.pairs,
        **{name: getattr(measures.direction, field) for field, name in _DIRECTIONS.items()},
    }
    variables = {name: (DIMENSIONS[name], np.asarray(value)) for name, value in values.items()}
    for name, (field, dimensions) in _NULLS.items():
        value = getattr(measures.null, field)
        scope = ("scope",) if isinstance(value, Width) else ()
        variables[name] = ((*scope, *dimensions), np.asarray(value))
    rows, columns = measures.grid
    coordinates = {
        "axis": np.array(AXES, object),
        "scope": np.array(WIDTHS, object),
        "row_offset": np.arange(1 - rows, rows),
        "column_offset": np.arange(1 - columns, columns),
        "distance": measures.curve.distance,
    }
    return xr.Dataset(variables, coordinates)


def positions_of(dataset: xr.Dataset) -> PositionMeasures:
    """Reads the measures of rotary positions from the result of `analyze`.

    Raises:
      QkjaxError: a variable is missing, or has other dimensions or impossible values.
    """
    try:
        grid = tuple(json.loads(dataset.attrs["options"])["grid"])
        _check(dataset, grid)
        fields = {}
        for name, (field, _) in _NULLS.items():
            values = dataset[name].values
            fields[field] = Width(*values) if "scope" in dataset[name].dims else values
        fields |= {name: float(fields[name]) for name in ("share", "isotropic", "odd")}
        return PositionMeasures(
            grid,
            dataset.coherence.values,
            dataset.plane_step.values,
            PlaceShare(*(dataset[_SHARES[field]].values for field in PlaceShare._fields)),
            dataset.offset_cosine.values,
            ByDistance(dataset.distance.values, dataset.distance_pairs.values, dataset.distance_cosine.values),
            Isotropy(*(dataset[_DIRECTIONS[field]].values for field in Isotropy._fields)),
            RotaryNull(**fields),
        )
    except (LookupError, ValueError, TypeError) as error:
        raise QkjaxError(
            f"the dataset has no valid measures of rotary positions ({error}): expected the result of qkjax.analyze "
            "for a model with rotary positions"
        ) from error


def _check(dataset: xr.Dataset, grid: tuple[int, int]) -> None:
    """Raises ValueError if a variable has other dimensions or values than `position_dataset` gives it."""
    rows, columns = grid
    expected = {"axis": list(AXES), "scope": list(WIDTHS)}
    expected |= {"row_offset": list(range(1 - rows, rows)), "column_offset": list(range(1 - columns, columns))}
    for name, values in expected.items():
        if dataset[name].values.tolist() != values:
            raise ValueError(f"{name} is {dataset[name].values.tolist()}, expected {values}")
    if 2 * dataset.sizes["plane"] < dataset.sizes["mode"]:
        raise ValueError(f"{dataset.sizes['plane']} planes have at most {2 * dataset.sizes['plane']} modes")
    for name, dimensions in DIMENSIONS.items():
        if dataset[name].dims != dimensions:
            raise ValueError(f"{name} has dimensions {dataset[name].dims}, expected {dimensions}")
    for name in (*DIMENSIONS, *_NULLS):
        low, high = _RANGES.get(name, (-np.inf, np.inf))
        values = dataset[name].values
        if ((values < low) | (values > high)).any():
            raise ValueError(f"{name} is outside {low} to {high}")


_RANGES: Mapping[str, tuple[float, float]] = {
    "coherence": (0, 1 + 1e-6),
    "position_share": (-1e-3, 1 + 1e-3),
    "offset_cosine": (-1 - 1e-3, 1 + 1e-3),
    "distance_cosine": (-1 - 1e-3, 1 + 1e-3),
    "distance_pairs": (1, np.inf),
    "isotropic_share": (-1e-9, 1 + 1e-9),
    "odd_share": (-1e-9, 1 + 1e-9),
}
"""Possible values, with a margin for rounding."""
