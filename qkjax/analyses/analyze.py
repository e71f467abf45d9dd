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
from qkjax.interaction.directionality import directionality
from qkjax.interaction.frame import Frame
from qkjax.interaction.head_null import READINGS, head_null, readings
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.at_positions import kernels_of_modes
from qkjax.results.annotate import annotated
from qkjax.results.chance import head_rows, with_chance
from qkjax.results.modes import LABELS, format_table, layer_rows, metrics_of, to_dataset
from qkjax.results.position_tables import layer_columns, position_summary
from qkjax.results.positions import POSITION_LABELS, ROTARY_BIAS_LABELS, position_dataset, positions_of
from qkjax.results.rows import Row, head_mean
from qkjax.vit.config import ViTConfig
from qkjax.vit.windows import described_windows
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
      grid: for a checkpoint with rotary positions, rows and columns of patches; by default the checkpoint's own grid,
        or that of one window if the model has windows.

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
    kernels = *kernels_of_modes(parts), parts.norm_scale if fold_scale else None
    metrics = metrics._replace(head_null=head_null(modes, metrics.null, *kernels))
    attrs = {
        **origin_of(checkpoint),
        "source": Path(checkpoint.source).name,
        "config": json.dumps(checkpoint.config.to_dict()),
        "options": json.dumps(frame | ({"positions": "mean", "grid": parts.rotation.grid} if is_rotary else {})),
        "summary": summary(metrics),
    }
    dataset = with_chance(to_dataset(modes, metrics, bias, attrs), metrics.head_null, directionality(modes, *kernels))
    dataset = annotated(dataset, LABELS)
    if not is_rotary:
        return dataset
    dataset.attrs["summary"] += _about_windows(checkpoint.config, parts, modes)
    return _with_positions(dataset, parts, fold_scale, center)


def _about_windows(config: ViTConfig, parts: QueryKey, modes: Modes) -> str:
    """States which places the modes of a model with windows are a mean over; "" for all other models."""
    if parts.rotation.window is not None:
        size = " x ".join(map(str, parts.rotation.window))
        return (
            f" M is the {modes.frame.positions}. How the interaction depends on position is not measured, because "
            "layers attend to different places of this grid: analyse the grid of one window, "
            f"{size} patches, to measure it."
        )
    larger = " In larger images, the queries of these layers attend to more places." if config.global_layers else ""
    return f" The grid is one window: the model has {described_windows(config)}.{larger}" if config.window else ""


def _with_positions(dataset: xr.Dataset, parts: QueryKey, fold_scale: bool, center: bool) -> xr.Dataset:
    """Adds the measures of rotary positions, and states that M is the mean over positions.

    In a grid of several windows, layers attend to different places, and there are no measures.
    """
    if parts.rotation.window is not None:
        return annotated(dataset, LABELS | ROTARY_BIAS_LABELS)
    measures = positions.position_measures(parts, fold_scale, center)
    dataset = dataset.merge(position_dataset(measures))
    dataset.attrs["summary"] = f"{position_summary(measures)} {dataset.attrs['summary']}"
    return annotated(dataset, LABELS | ROTARY_BIAS_LABELS | POSITION_LABELS)


def describe(dataset: xr.Dataset) -> Description:
    """Makes a table with one row per layer, one with one row per head, and five figures, from the result of `analyze`.

    For models with rotary positions, there are also tables and figures of the dependence on position.

    Args:
      dataset: the result of `analyze`.
    """
    name, metrics, rows = dataset.attrs["model"], metrics_of(dataset), layer_rows(dataset)
    if "position_share" not in dataset:
        return _describe_modes(f"{name} ({frame_in_words(dataset)})", metrics, rows, head_rows(dataset, metrics))
    measures, more = positions_of(dataset), positions.describe(dataset)
    rows = [row | columns for row, columns in zip(rows, layer_columns(measures), strict=True)]
    places = f"mean over the positions of {' x '.join(map(str, measures.grid))} patches"
    modes = _describe_modes(f"{name} ({frame_in_words(dataset)}, {places})", metrics, rows, head_rows(dataset, metrics))
    return modes._replace(
        text=f"{modes.text}\n\n{more.text}", tables=modes.tables | more.tables, figures=modes.figures | more.figures
    )


def _describe_modes(name: str, metrics: Metrics, rows: list[Row], heads: list[Row]) -> Description:
    """The tables and figures of the modes; `name` is the title of the figures."""
    return Description(
        format_table(rows),
        rows,
        {"layers": rows, "heads": heads},
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
    """Summarises the result in words: layers with the highest and lowest weighted cosines, and counts of heads."""
    weighted = head_mean(metrics.weighted_cosine)
    null, head_chance, chance = metrics.chance()
    order = np.argsort(-np.nan_to_num(weighted, nan=-2), kind="stable")
    most = sorted(int(layer) for layer in order[:3] if weighted[layer] > chance[layer])
    lowest = int(np.nanargmin(weighted)) if np.isfinite(weighted).any() else 0
    values = ", ".join(f"{weighted[layer]:.2f}" for layer in most)
    bands = f"{CHANCE_WORDS[null]}, 95% of layers lie within {_range(chance)} of 0"
    first = (
        f"Grouping is strongest in layer{'s' * (len(most) > 1)} {_listed(most)} (weighted cosine {values}; {bands})."
        if most
        else f"No layer groups more than expected by chance ({bands})."
    )
    at = chance[lowest]
    place = "below" if weighted[lowest] < -at else "within" if abs(weighted[lowest]) <= at else "above"
    within = int((np.abs(weighted) <= chance).sum())
    words = readings(metrics.weighted_cosine, head_chance)
    group, inside, negative = (int((words == word).sum()) for word in READINGS)
    return (
        f"{first} The weighted cosine is lowest in layer {lowest} ({weighted[lowest]:.2f}, {place} the chance "
        f"interval). {within} of {len(weighted)} layers lie within the chance interval. Of {words.size} heads, {group} "
        f"group, {inside} lie within their own chance interval, and {negative} are negative."
    )


CHANCE_WORDS = {
    "gaussian": "with random weights",
    "rotation": "with a random rotation between query and key",
}


def _range(values: np.ndarray) -> str:
    """The smallest and the largest value, or one value if both are equal to three decimal places."""
    finite = values[np.isfinite(values)]
    return " to ".join(dict.fromkeys(f"{end:.3f}" for end in (finite.min(initial=np.inf), finite.max(initial=0))))


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers[:-1])) + (" and " if len(layers) > 1 else "") + str(layers[-1])


def curve_rows(dataset: xr.Dataset, objective: str) -> list[Row]:
    """Rows for a table of several models: one row per layer of this model.

    Args:
      dataset: the result of `analyze`.
      objective: the training objective of the model, as in the catalogue.
    """
    weighted, plain = (head_mean(dataset[name].values) for name in ("weighted_cosine", "mean_cosine"))
    chance = metrics_of(dataset).chance()[2]
    return [
        {"model": dataset.attrs["model"], "objective": objective, "layer": i,
         "relative_depth": i / max(len(plain) - 1, 1), "weighted_cosine": float(weighted[i]),
         "mean_cosine": float(plain[i]), "null_weighted_cosine": float(chance[i])}
        for i in range(len(plain))
    ]  # fmt: skip
