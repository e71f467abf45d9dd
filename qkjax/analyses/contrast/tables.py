"""Converts contrastive covariances to a labelled dataset and to a table."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.activations.contrast import Contrast
from qkjax.results.annotate import Label, annotated
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions

PER_MODE = ("layer", "head", "mode")
LABELS = {
    "query_dim": Label("query dimension", "1", "Index of a dimension of the head's queries."),
    "key_dim": Label("key dimension", "1", "Index of a dimension of the head's keys."),
    "vector": Label("singular vector", "1", "Index of the singular vector of the covariance, strongest first."),
    "covariance": Label("contrastive covariance", "1", "E[q k^T | same object] - E[q k^T | different objects]."),
    "singular_value": Label("singular value", "1", "Singular values of the contrastive covariance."),
    "mode_contrast": Label("contrast of the mode", "logit", "Part of the mean logit difference that a mode adds."),
    "control_difference": Label("control", "logit", "Mean logit difference with masks turned by 180 degrees."),
    "query_overlap": Label("overlap of queries", "1", "Of the first singular vectors with queries of the first modes."),
    "key_overlap": Label("overlap of keys", "1", "Of the first singular vectors with keys of the first modes."),
    "chance": Label("overlap by chance", "1", "Mean overlap of random spaces: number of modes / head_dim."),
    "left_out": Label("image left out", "", "Name of an image that was left out."),
    "reason": Label("reason", "", "Why the image was left out."),
}


def contrast_dataset(
    covariance: Float[np.ndarray, "layers heads d d"],
    contrast: Contrast,
    control: Float[np.ndarray, "layers heads d d"],
    images: Sequence[str],
    left_out: Sequence[tuple[str, str]],
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """Collects the contrastive covariances of all heads, and their relation to the modes, in a dataset.

    `control` is the contrastive covariance with masks that are turned by 180 degrees.

    Along `mode`, `query_overlap`, `key_overlap` and `chance` are those of the first modes up to and including this one.
    """
    variables = {
        "covariance": (("layer", "head", "query_dim", "key_dim"), covariance.astype(np.float32)),
        "singular_value": (("layer", "head", "vector"), contrast.singular_value),
        **{name: (PER_MODE, getattr(contrast, name)) for name in ("mode_contrast", "query_overlap", "key_overlap")},
        "control_difference": (("layer", "head"), np.trace(control, axis1=2, axis2=3) / np.sqrt(control.shape[-1])),
        "chance": ("mode", contrast.chance),
        "left_out": ("missing", texts([name for name, _ in left_out])),
        "reason": ("missing", texts([reason for _, reason in left_out])),
    }
    coords = {"image": ("image", texts(images))}
    return annotated(xr.Dataset(variables, coords, {**attrs, **versions()}), LABELS)


def contrast_rows(dataset: xr.Dataset, modes: int = 8) -> list[Row]:
    """A table with one row per layer: means over heads.

    `logit_difference` is the mean logit of pairs on the same object minus that of pairs on different objects, and
    `control` is the same with masks that are turned by 180 degrees. `first_8_modes` is the part of `logit_difference`
    that the first 8 modes add. `query_overlap` and `key_overlap` are those of the first 8 singular vectors and modes.
    If `modes` is given, it replaces the number 8.
    """
    first = min(modes, dataset.sizes["mode"])
    contrast, control = (dataset[name].mean("head").values for name in ("mode_contrast", "control_difference"))
    overlaps = {name: dataset[name].mean("head").values[:, first - 1] for name in ("query_overlap", "key_overlap")}
    return [
        {"layer": layer, "logit_difference": float(own.sum()), "control": float(control[layer]),
         f"first_{first}_modes": float(own[:first].sum()),
         **{name: float(values[layer]) for name, values in overlaps.items()},
         "chance": float(dataset.chance.values[first - 1])}
        for layer, own in enumerate(contrast)
    ]  # fmt: skip
