"""Analyses a model's weights, without images: computes the modes, measures of the modes, and bias terms."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses import positions
from qkjax.analyses.decomposition import decompose, query_key
from qkjax.analyses.outcome import Description
from qkjax.analyses.usable import require_finite_heads, require_finite_modes
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.frame import Frame
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.query_key import QueryKey
from qkjax.results.annotate import annotated
from qkjax.results.modes import LABELS, format_table, layer_rows, metrics_of, to_dataset
from qkjax.results.position_tables import layer_columns, position_summary
from qkjax.results.positions import POSITION_LABELS, ROTARY_BIAS_LABELS, position_dataset, positions_of
from qkjax.results.rows import Row, head_mean
from qkjax.weights.checkpoint import Checkpoint, origin_of


def analyze(
    checkpoint: Checkpoint,
    *,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    grid: tuple[int, int] | None = None,
) -> xr.Dataset:
    """Decomposes the query-key interaction of every head into modes, and measures the modes. No images are needed.

    For a model with rotary positions, the modes are those of the mean over positions; see `decompose`. The result then
    also states how the interaction depends on positions.

    Args:
      checkpoint: any checkpoint, including an edited or newly trained checkpoint.
      fold_scale, center, normalize: options that define M; see `decompose`.
      grid: for a checkpoint with rotary positions, rows and columns of patches; by default the checkpoint's own grid.

    Returns:
      A dataset with dimensions layer, head, mode and embed; spectra have the dimensions eigen and pair. See
      `qkjax.results.modes.to_dataset`, and `qkjax.results.positions` for the variables of rotary positions.

    Raises:
      QkjaxError: `center` is set without `fold_scale`, or for a model with RMSNorm; or a result is not finite, since
        the kernels are too large; or `grid` is invalid or does not apply.

    Example:
      >>> import qkjax
      >>> result = qkjax.analyze(qkjax.load("dinov2-vits14-focus"))
      >>> result.weighted_cosine.dims, result.weighted_cosine.shape
      (('layer', 'head'), (12, 6))
    """
    parts = query_key(checkpoint, grid)
    frame = {"fold_scale": fold_scale, "center": center, "normalize": normalize}
    modes = decompose(parts, **frame)
    require_finite_modes(modes, checkpoint.name)
    is_rotary = parts.rotation is not None
    bias = positions.mean_bias(parts) if is_rotary else bias_terms(parts)
    require_finite_heads({f"bias terms ({name})": value for name, value in bias._asdict().items()}, checkpoint.name)
    metrics = measure(modes)
    attrs = {
        **origin_of(checkpoint),
        "source": Path(checkpoint.source).name,
        "config": json.dumps(checkpoint.config.to_dict()),
        "options": json.dumps(frame | ({"positions": "mean", "grid": parts.rotation.grid} if is_rotary else {})),
        "summary": summary(metrics),
    }
    dataset = to_dataset(modes, metrics, bias, attrs)
    return _with_positions(dataset, parts, fold_scale, center) if is_rotary else dataset


def _with_positions(dataset: xr.Dataset, parts: QueryKey, fold_scale: bool, center: bool) -> xr.Dataset:
    """Adds the measures of rotary positions, and states that M is the mean over positions."""
    measures = positions.position_measures(parts, fold_scale, center)
    dataset = dataset.merge(position_dataset(measures))
    dataset.attrs["summary"] = f"{position_summary(measures)} {dataset.attrs['summary']}"
    return annotated(dataset, LABELS | ROTARY_BIAS_LABELS | POSITION_LABELS)


def describe(dataset: xr.Dataset) -> Description:
    """Makes a table with one row per layer, and five figures, from the result of `analyze`.

    For models with rotary positions, there are also tables and figures of the dependence on position.

    Args:
      dataset: the result of `analyze`.
    """
    name, metrics, rows = dataset.attrs["model"], metrics_of(dataset), layer_rows(dataset)
    frame = frame_in_words(dataset)
    if "position_share" not in dataset:
        return _describe_modes(f"{name} ({frame})", metrics, rows)
    measures, more = positions_of(dataset), positions.describe(dataset)
    rows = [row | columns for row, columns in zip(rows, layer_columns(measures), strict=True)]
    grid = " x ".join(map(str, measures.grid))
    modes = _describe_modes(f"{name} ({frame}, mean over the positions of {grid} patches)", metrics, rows)
    return modes._replace(
        text=f"{modes.text}\n\n{more.text}", tables=modes.tables | more.tables, figures=modes.figures | more.figures
    )


def _describe_modes(name: str, metrics: Metrics, rows: list[Row]) -> Description:
    """The tables and figures of the modes; `name` is the title of the figures."""
    return Description(
        format_table(rows),
        rows,
        {"layers": rows},
        {
            "cosine_by_layer": lambda: figures.cosine_by_layer({name: metrics}),
            "cosine_histograms": lambda: figures.cosine_histograms(name, metrics),
            "spectra": lambda: figures.spectra(name, metrics),
            "head_map": lambda: figures.head_map(name, metrics),
            "symmetry_by_layer": lambda: figures.symmetry_by_layer(name, metrics),
        },
    )


def frame_in_words(dataset: xr.Dataset) -> str:
    """The frame of the modes in the result of `analyze` or `compare`, such as "plain frame"."""
    options = json.loads(dataset.attrs["options"])
    return Frame(*(options[name] for name in ("fold_scale", "center", "normalize"))).in_words()


def overlay(datasets: Mapping[str, xr.Dataset]):
    """Plots the weighted cosine of several models, all in the same frame, against relative depth."""
    measured = {name: metrics_of(dataset) for name, dataset in datasets.items()}
    return figures.cosine_by_layer(measured, frame=frame_in_words(next(iter(datasets.values()))))


def summary(metrics: Metrics) -> str:
    """Summarises the result in words: the layers with the highest weighted cosines, and the layer with the lowest."""
    weighted = head_mean(metrics.weighted_cosine)
    chance = float(metrics.null.weighted_cosine)
    order = np.argsort(-np.nan_to_num(weighted, nan=-2), kind="stable")
    most = sorted(int(layer) for layer in order[:3] if weighted[layer] > chance)
    lowest = int(np.nanargmin(weighted)) if np.isfinite(weighted).any() else 0
    values = ", ".join(f"{weighted[layer]:.2f}" for layer in most)
    first = (
        f"Grouping is strongest in layer{'s' * (len(most) > 1)} {_listed(most)} (weighted cosine {values}; with "
        f"random weights, 95% of layers lie within {chance:.3f} of 0)."
        if most
        else "No layer groups more than expected by chance (with random weights, 95% of layers lie within "
        f"{chance:.3f} of 0)."
    )
    place = "below" if weighted[lowest] < -chance else "within" if abs(weighted[lowest]) <= chance else "above"
    within = int((np.abs(weighted) <= chance).sum())
    return (
        f"{first} The weighted cosine is lowest in layer {lowest} ({weighted[lowest]:.2f}, {place} the chance "
        f"interval). {within} of {len(weighted)} layers lie within the chance interval."
    )


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers[:-1])) + (" and " if len(layers) > 1 else "") + str(layers[-1])


def curve_rows(dataset: xr.Dataset, objective: str) -> list[Row]:
    """Rows for a table of several models: one row per layer of this model.

    Args:
      dataset: the result of `analyze`.
      objective: the training objective of the model, as in the catalogue.
    """
    weighted, plain = (head_mean(dataset[name].values) for name in ("weighted_cosine", "mean_cosine"))
    return [
        {"model": dataset.attrs["model"], "objective": objective, "layer": i,
         "relative_depth": i / max(len(plain) - 1, 1), "weighted_cosine": float(weighted[i]),
         "mean_cosine": float(plain[i]), "null_weighted_cosine": float(dataset.attrs["null_weighted_cosine"])}
        for i in range(len(plain))
    ]  # fmt: skip
