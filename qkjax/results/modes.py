"""The modes of one model, and how those of two differ, as labelled datasets and tables."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax.interaction.bias import BiasTerms, relative_spreads
from qkjax.interaction.difference import Difference
from qkjax.interaction.metrics import Metrics
from qkjax.interaction.modes import Modes
from qkjax.results.rows import Row, format_rows, head_mean
from qkjax.results.store import versions

PER_MODE, PER_HEAD = ("layer", "head", "mode"), ("layer", "head")
VECTORS = ("layer", "head", "embed", "mode")
DIMS = {"symmetric_eigenvalues": (*PER_HEAD, "eigen"), "antisymmetric_spectrum": (*PER_HEAD, "pair")}


def to_dataset(modes: Modes, metrics: Metrics, bias: BiasTerms, attrs: Mapping[str, str]) -> xr.Dataset:
    """Everything known of one model's modes.

    Returns:
      A dataset with dims layer, head, mode, embed (and eigen, pair): `u`, `v`, `singular_value`,
      `cosine`, the other `Metrics`, the bias terms as `bias_*`, the null as attributes `null_*`,
      and the versions of the libraries that made it.
    """
    variables = {"u": (VECTORS, modes.u), "v": (VECTORS, modes.v)}
    for name, value in metrics._asdict().items():
        if name != "null":
            variables[name] = (DIMS.get(name, PER_MODE if value.ndim == 3 else PER_HEAD), value)
    for name, value in bias._asdict().items():
        variables[f"bias_{name}"] = ((*PER_HEAD, "embed") if value.ndim == 3 else PER_HEAD, value)
    null = {f"null_{name}": value for name, value in metrics.null._asdict().items()}
    attrs = {**attrs, **null, **versions()}
    dataset = xr.Dataset({n: (d, np.asarray(v)) for n, (d, v) in variables.items()}, attrs=attrs)
    return dataset.assign_coords({dim: np.arange(dataset.sizes[dim]) for dim in ("layer", "head", "mode")})


def layer_table(metrics: Metrics, bias: BiasTerms) -> list[Row]:
    """One row a layer, means over its heads; a head whose M is zero is left out.

    `half_strength_modes` is how many modes hold half of sum(s); `key_bias` and `query_bias` are the
    spreads of their terms relative to the spread of y_i M y_j (see `BiasTerms`). The `null_` columns
    are half widths of the 95% interval of chance.
    """
    held = np.asarray(metrics.cumulative_strength)
    half = np.where(np.isfinite(held[..., 0]), 1 + (held < 0.5).sum(-1), np.nan)
    query_bias, key_bias = relative_spreads(bias)
    columns = {
        "weighted_cosine": metrics.weighted_cosine,
        "mean_cosine": metrics.mean_cosine,
        "effective_rank": metrics.effective_rank,
        "stable_rank": metrics.stable_rank,
        "half_strength_modes": half,
        "symmetric_share": metrics.symmetric_share,
        "key_bias": key_bias,
        "query_bias": query_bias,
        "degenerate_share": np.asarray(metrics.degenerate, float).mean(-1),
    }
    null = {"null_weighted_cosine": metrics.null.weighted_cosine, "null_mean_cosine": metrics.null.mean_cosine}
    means = {name: head_mean(values) for name, values in columns.items()}
    depth = len(means["mean_cosine"])
    return [
        {"layer": i, "relative_depth": i / max(depth - 1, 1), **{n: float(v[i]) for n, v in means.items()}, **null}
        for i in range(depth)
    ]


def difference_dataset(found: Difference, attrs: Mapping[str, str]) -> xr.Dataset:
    """How two models differ, with dims layer, head, mode (of the first model; for `_angles` their order)."""
    variables = {
        name: (PER_MODE if value.ndim == 3 else PER_HEAD, np.asarray(value)) for name, value in found._asdict().items()
    }
    return xr.Dataset(variables, attrs={**attrs, **versions()})


def format_table(rows: list[Row]) -> str:
    """The columns of the layer table that one looks at first, as text."""
    shown = {
        "layer": ("layer", "d"),
        "weighted_cosine": ("weighted cos", ".3f"),
        "mean_cosine": ("plain cos", ".3f"),
        "null_weighted_cosine": ("chance +-", ".3f"),
        "effective_rank": ("eff. rank", ".1f"),
        "stable_rank": ("stable rank", ".1f"),
        "half_strength_modes": ("modes of 50%", ".1f"),
        "symmetric_share": ("symmetric", ".2f"),
        "degenerate_share": ("degenerate", ".2f"),
        "key_bias": ("key bias", ".2f"),
    }
    return format_rows([{title: row[name] for name, (title, _) in shown.items()} for row in rows], dict(shown.values()))
