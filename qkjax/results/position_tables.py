"""Tables of the measures of rotary positions: by layer, head, plane, distance and offset."""

import numpy as np

from qkjax.interaction.rotary.measures import PositionMeasures
from qkjax.results.rows import Row, format_rows, head_mean


def far_distance(measures: PositionMeasures) -> int:
    """The distance that stands for distant patches in tables and text: half of the longest side of the grid."""
    return max(1, round(max(measures.grid) / 2))


def _at(measures: PositionMeasures, distance: int) -> int:
    """Index of the distance in the curve; every distance up to the longest side occurs."""
    return int(np.flatnonzero(measures.curve.distance == distance)[0])


def _values(measures: PositionMeasures) -> dict[str, np.ndarray]:
    """The measures that have one value per head, by the names of their columns: (layers, heads)."""
    rows, columns = np.moveaxis(measures.share.axis, -1, 0)
    curve, far = measures.curve.value, far_distance(measures)
    along, ahead = measures.direction.along, measures.direction.ahead
    return {
        "position_share": measures.share.share,
        "position_share_row": rows,
        "position_share_column": columns,
        "cosine_same": curve[..., 0],
        "cosine_near": curve[..., _at(measures, 1)],
        "cosine_far": curve[..., _at(measures, far)],
        "isotropic_share": measures.direction.isotropic,
        "odd_share": measures.direction.odd,
        "cosine_along_row_axis": along[..., 0],
        "cosine_along_column_axis": along[..., 1],
        "below_minus_above": ahead[..., 0],
        "right_minus_left": ahead[..., 1],
    }


def _chance(measures: PositionMeasures, scope: str) -> dict[str, float]:
    """Values expected by chance: half widths about 0 (or about `null_position_share`), or upper ends of intervals."""
    null, far = measures.null, far_distance(measures)
    curve = getattr(null.curve_width, scope)
    along, ahead = getattr(null.along_width, scope), getattr(null.ahead_width, scope)
    rows, columns = getattr(null.axis_width, scope)
    return {
        "null_position_share": null.share,
        "null_position_share_width": float(getattr(null.share_width, scope)),
        "null_position_share_row": float(null.axis[0]),
        "null_position_share_row_width": float(rows),
        "null_position_share_column": float(null.axis[1]),
        "null_position_share_column_width": float(columns),
        "null_cosine_same": float(curve[0]),
        "null_cosine_near": float(curve[_at(measures, 1)]),
        "null_cosine_far": float(curve[_at(measures, far)]),
        "null_isotropic_share": null.isotropic,
        "null_isotropic_share_end": float(getattr(null.isotropic_end, scope)),
        "null_odd_share": null.odd,
        "null_odd_share_end": float(getattr(null.odd_end, scope)),
        "null_cosine_along_row_axis": float(along[0]),
        "null_cosine_along_column_axis": float(along[1]),
        "null_below_minus_above": float(ahead[0]),
        "null_right_minus_left": float(ahead[1]),
    }


def layer_columns(measures: PositionMeasures) -> list[Row]:
    """The columns that layers.csv has for models with rotary positions: means over heads, and chance for a layer."""
    means = {name: head_mean(values) for name, values in _values(measures).items()}
    chance = _chance(measures, "layer")
    layers = len(measures.cosine)
    far = {"far_distance": far_distance(measures)}
    return [{**{n: float(v[i]) for n, v in means.items()}, **far, **chance} for i in range(layers)]


def head_rows(measures: PositionMeasures) -> list[Row]:
    """One row per head, with chance for a single head."""
    values, chance = _values(measures), _chance(measures, "head")
    return [
        {"layer": layer, "head": head, **{name: float(value[layer, head]) for name, value in values.items()},
         "far_distance": far_distance(measures), **chance}
        for layer, head in np.ndindex(*measures.share.share.shape)
    ]  # fmt: skip


def plane_rows(measures: PositionMeasures) -> list[Row]:
    """One row per layer and plane, with means over heads."""
    contribution = head_mean(np.swapaxes(measures.share.contribution, 1, 2))
    within = head_mean(np.swapaxes(measures.share.within_plane, 1, 2))
    null = measures.null
    return [
        {"layer": layer, "plane": plane,
         "row_step": float(measures.step[0, plane]), "column_step": float(measures.step[1, plane]),
         "coherence": float(measures.coherence[plane]),
         "contribution": float(contribution[layer, plane]),
         "null_contribution": float(null.contribution[plane]),
         "null_contribution_width": float(null.contribution_width.layer[plane]),
         "within_plane": float(within[layer, plane]),
         "null_within_plane": float(null.within_plane[plane]),
         "null_within_plane_width": float(null.within_plane_width.layer[plane])}
        for layer, plane in np.ndindex(*contribution.shape)
    ]  # fmt: skip


def distance_rows(measures: PositionMeasures) -> list[Row]:
    """One row per layer and distance, with means over heads."""
    curve = measures.curve
    means = head_mean(np.swapaxes(curve.value, 1, 2))
    return [
        {"layer": layer, "distance": int(curve.distance[i]), "pairs": int(curve.pairs[i]),
         "weighted_cosine": float(means[layer, i]), "null_weighted_cosine": float(measures.null.curve_width.layer[i])}
        for layer, i in np.ndindex(*means.shape)
    ]  # fmt: skip


def offset_rows(measures: PositionMeasures) -> list[Row]:
    """One row per layer and offset, with means over heads."""
    means = head_mean(np.moveaxis(measures.cosine, 1, -1))
    rows, columns = measures.grid
    null = float(measures.null.cosine_width.layer)
    return [
        {"layer": layer, "row_offset": down - rows + 1, "column_offset": across - columns + 1,
         "weighted_cosine": float(means[layer, down, across]), "null_weighted_cosine": null}
        for layer, down, across in np.ndindex(*means.shape)
    ]  # fmt: skip


def format_positions(measures: PositionMeasures) -> str:
    """Formats the main columns by layer as text that is at most 80 characters wide, with a line that explains them."""
    far = far_distance(measures)
    columns = {
        "position_share": "position",
        "null_position_share": "chance",
        "position_share_row": "rows",
        "position_share_column": "cols",
        "cosine_same": "at 0",
        "cosine_near": "at 1",
        "cosine_far": f"at {far}" if far > 1 else "far",
        "null_cosine_near": "+-",
        "isotropic_share": "iso.",
        "odd_share": "odd",
    }
    rows = [
        {"layer": i} | {title: row[name] for name, title in columns.items()}
        for i, row in enumerate(layer_columns(measures))
    ]
    formats = dict.fromkeys(("position", "chance", "rows", "cols", "iso.", "odd"), ".2f")
    title = (
        f"share of M(offset) that depends on position, and weighted cosine at distances\n"
        f"of 0, 1 and {far} patches (grid of {' x '.join(map(str, measures.grid))} patches; +-: chance at 1 patch):\n"
    )
    return title + format_rows(rows, formats)


def position_summary(measures: PositionMeasures) -> str:
    """Summarises the measures in words."""
    columns = layer_columns(measures)
    share, near, distant = (
        np.array([row[name] for row in columns]) for name in ("position_share", "cosine_near", "cosine_far")
    )
    if not np.isfinite(share).any():
        return "The interaction of all heads is zero."
    most, least, first = int(np.nanargmax(share)), int(np.nanargmin(share)), columns[0]
    chance, width = first["null_position_share"], first["null_position_share_width"]
    cosines = (f"{np.nanmean(values):.2f}".replace("-0.00", "0.00") for values in (near, distant))
    return (
        f"M is the mean over the positions of a grid of {' x '.join(map(str, measures.grid))} patches. On average, "
        f"{np.nanmean(share):.0%} of the squared interaction depends on position (layer {most}: {share[most]:.0%}, "
        f"layer {least}: {share[least]:.0%}; 95% of layers with random kernels: {max(chance - width, 0):.1%} to "
        f"{chance + width:.1%}). The weighted cosine of M(offset) is {next(cosines)} at a distance of 1 patch and "
        f"{next(cosines)} at a distance of {first['far_distance']} (with random kernels, 95% of layers lie within "
        f"{first['null_cosine_near']:.3f} of 0)."
    )
