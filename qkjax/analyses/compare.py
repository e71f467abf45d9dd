"""Compares two models of the same architecture mode by mode, and any models layer by layer."""

import json
from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.analyze import CHANCE_WORDS, curve_rows, frame_in_words
from qkjax.analyses.decomposition import decompose
from qkjax.analyses.outcome import Description
from qkjax.analyses.usable import require_finite_heads, require_finite_modes
from qkjax.errors import QkjaxError
from qkjax.interaction.difference import difference
from qkjax.results.annotate import Label, annotated
from qkjax.results.modes import difference_dataset, difference_of, metrics_of
from qkjax.results.rows import Row, format_rows, head_mean
from qkjax.weights import catalogue
from qkjax.weights.checkpoint import Checkpoint

DEPTHS = (0, 0.25, 0.5, 0.75, 1)


def compare(
    first: Checkpoint,
    second: Checkpoint,
    *,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
) -> xr.Dataset:
    """Measures how much the modes of the second model differ from the modes of the first model.

    For a model with rotary positions, the modes are those of the mean over the positions of its own grid; see
    `decompose`.

    Args:
      first, second: checkpoints with the same architecture, such as a model before and after fine-tuning.
      fold_scale, center, normalize: options that define M; see `decompose`.

    Returns:
      A dataset with dimensions layer, head and mode; the modes are those of the first model. See
      `qkjax.interaction.difference.Difference`.

    Raises:
      QkjaxError: the models differ in the number of layers, the number of heads, the width or the rank, or a result is
        not finite, since the kernels are too large.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> result = qkjax.compare(checkpoint, qkjax.edit(checkpoint, "flip", "modes=0"))
      >>> result.similarity.dims
      ('layer', 'head')
    """
    frame = {"fold_scale": fold_scale, "center": center, "normalize": normalize}
    modes = decompose(first, **frame), decompose(second, **frame)
    for own, checkpoint in zip(modes, (first, second), strict=True):
        require_finite_modes(own, checkpoint.name)
    result = difference(*modes)
    grids = {
        checkpoint.name: own.frame.positions.grid
        for own, checkpoint in zip(modes, (first, second), strict=True)
        if own.frame.positions is not None
    }
    nothing = np.any([np.asarray(own.s).max(-1) == 0 for own in modes], axis=0)  # heads of M = 0 have no similarity
    values = {"similarities": result.similarity, "strength ratios": result.strength_ratio}
    pair = f"{second.name} to {first.name}"
    require_finite_heads({name: np.where(nothing, 0, value) for name, value in values.items()}, pair)
    by_layer = head_mean(result.similarity)
    least, most = int(np.nanargmin(by_layer)), int(np.nanargmax(by_layer))
    attrs = {
        "first": first.name,
        "second": second.name,
        "options": json.dumps(frame),
        "summary": f"The interactions differ most in layer {least} (similarity {by_layer[least]:.2f}, where 1 means "
        f"identical), and least in layer {most} ({by_layer[most]:.2f}).{_averaged(grids)}",
    }
    return difference_dataset(result, attrs)


def _averaged(grids: Mapping[str, tuple[int, ...]]) -> str:
    """States for which models M is a mean over positions; empty if there are none.

    Args:
      grids: a dict from the name of each model with rotary positions to its grid.
    """
    if not grids:
        return ""
    names = ", ".join(f"{name} ({' x '.join(map(str, grid))} patches)" for name, grid in grids.items())
    return f" M is the mean over positions in {names}, because of rotary positions."


def describe(dataset: xr.Dataset) -> Description:
    """Makes a table with one row per layer, and a figure, for the comparison of two models.

    Args:
      dataset: the result of `compare`.
    """
    first, second = dataset.attrs["first"], dataset.attrs["second"]
    rows, frame = difference_rows(dataset), frame_in_words(dataset)
    draw = {"difference": lambda: figures.difference_map(first, second, difference_of(dataset), frame)}
    return Description(format_rows(rows), rows, {"layers": rows}, draw)


def difference_rows(dataset: xr.Dataset) -> list[Row]:
    """One row per layer, with means over heads. An overlap is the mean squared cosine of the principal angles."""
    columns = {
        "similarity": dataset.similarity.values,
        "strength_ratio": dataset.strength_ratio.values,
        "query_overlap": (dataset.query_angles.values**2).mean(-1),
        "key_overlap": (dataset.key_angles.values**2).mean(-1),
        "match_similarity": dataset.match_similarity.values.mean(-1),
    }
    means = {name: head_mean(values) for name, values in columns.items()}
    layers = dataset.sizes["layer"]
    return [{"layer": i, **{n: float(v[i]) for n, v in means.items()}} for i in range(layers)]


def describe_curves(datasets: Mapping[str, xr.Dataset], objectives: Mapping[str, str]) -> Description:
    """Makes one table and one figure for several models.

    Args:
      datasets: a dict from model names to results of `analyze`.
      objectives: a dict from model names to training objectives.
    """
    measured = {name: metrics_of(dataset) for name, dataset in datasets.items()}
    rows = [row for name, dataset in datasets.items() for row in curve_rows(dataset, objectives[name])]
    frame = frame_in_words(next(iter(datasets.values())))
    draw = {"cosine_by_depth": lambda: figures.cosine_by_layer(measured, dict(objectives), frame)}
    return Description(curve_table(datasets, objectives), rows, {"compare": rows}, draw)


def curve_table(datasets: Mapping[str, xr.Dataset], objectives: Mapping[str, str]) -> str:
    """A text table of each model's weighted cosine at five relative depths, which is interpolated between layers."""
    width = min(max(map(len, datasets)), 26)
    lines = ["weighted cosine at depth".ljust(width + 18) + "".join(f"{d:7.2f}" for d in DEPTHS)]
    for name, dataset in datasets.items():
        values = head_mean(dataset.weighted_cosine.values)
        at = np.interp(DEPTHS, np.linspace(0, 1, len(values)), values)
        numbers = "".join(f"{v:7.3f}" for v in at)
        lines.append(f"{name[:width]:<{width}}  {objectives[name][:15]:<16}{numbers}")
    return "\n".join(lines)


def curves_dataset(datasets: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Collects the mean weighted cosine of each model in a dataset.

    Args:
      datasets: a dict from model names to results of `analyze`.

    Returns:
      A dataset with the dimension model. The variable `weighted_cosine` is the mean over layers and heads. The
      attribute `summary` of the dataset compares the models in words.
    """
    means = {name: float(np.nanmean(head_mean(data.weighted_cosine.values))) for name, data in datasets.items()}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    chance = {name: metrics_of(data).chance() for name, data in datasets.items()}
    widest = max(float(np.max(layer, where=np.isfinite(layer), initial=0)) for _, _, layer in chance.values())
    nulls = " or ".join(dict.fromkeys(CHANCE_WORDS[null] for null, _, _ in chance.values()))
    words = (
        f"Modes group most in {most} (weighted cosine {means[most]:.3f}, mean over all layers and heads), and least "
        f"in {least} ({means[least]:.3f}). {nulls.capitalize()}, 95% of the layers of any of these models lie within "
        f"{widest:.3f} of 0."
    )
    rotary = {
        name: json.loads(data.attrs["options"])["grid"] for name, data in datasets.items() if "plane" in data.dims
    }
    words += _averaged(rotary)
    labels = {
        "model": Label("model", "1", "Name of the model."),
        "weighted_cosine": Label("weighted cosine", "1", "Mean over layers of the means over heads."),
    }
    variables = {"weighted_cosine": ("model", list(means.values()))}
    return annotated(xr.Dataset(variables, {"model": list(means)}, {"summary": words}), labels)


def objective_of(name: str) -> str:
    """The training objective of a model in the catalogue, or "objective not stated" for any other model."""
    try:
        return catalogue.entry(name).objective
    except QkjaxError:
        return "objective not stated"
