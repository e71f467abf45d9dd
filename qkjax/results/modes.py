"""Makes labelled datasets and tables of the modes of one model, and of the difference between two models."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.interaction.bias import BiasTerms, relative_spreads
from qkjax.interaction.difference import Difference
from qkjax.interaction.metrics import METRIC_LABELS, Metrics
from qkjax.interaction.modes import Modes
from qkjax.interaction.null import Null
from qkjax.results.annotate import Label, annotated
from qkjax.results.chance import CHANCE_LABELS, chance_columns, direction_columns, head_null_of
from qkjax.results.rows import Row, format_rows, head_mean
from qkjax.results.store import versions

PER_MODE, PER_HEAD = ("layer", "head", "mode"), ("layer", "head")
VECTORS = ("layer", "head", "embed", "mode")
NULL_FIELDS = ("null", "head_null")
DIMS = {"symmetric_eigenvalues": (*PER_HEAD, "eigen"), "antisymmetric_spectrum": (*PER_HEAD, "pair")}

LABELS = (
    CHANCE_LABELS
    | {name: Label(*label) for name, label in METRIC_LABELS.items()}
    | {
        "u": Label("query direction", "1", "Query direction u of each mode (unit length)."),
        "v": Label("key direction", "1", "Key direction v of each mode (unit length)."),
        "bias_query_direction": Label("query bias direction", "1", "a = Wq bk. The softmax cancels the term y_i . a."),
        "bias_key_direction": Label("key bias direction", "1", "b = Wk bq. The term b . y_j is equal for all queries."),
        "bias_constant": Label("bias constant", "1", "c = bq . bk. The softmax cancels this constant."),
        "bias_interaction_spread": Label("spread of the interaction", "logit", "Standard deviation of y_i M y_j."),
        "bias_query_spread": Label("spread of the query bias", "logit", "Standard deviation of y_i . a."),
        "bias_key_spread": Label("spread of the key bias", "logit", "Standard deviation of b . y_j."),
        "similarity": Label("similarity", "1", "<M, M'> / (||M|| ||M'||): 1 if M and M' are equal up to strength."),
        "strength_ratio": Label("strength ratio", "1", "Frobenius norm of M in the second model / in the first model."),
        "query_angles": Label(
            "overlap of query spaces", "1", "Cosines of the principal angles between the spans of u."
        ),
        "key_angles": Label("overlap of key spaces", "1", "Cosines of the principal angles between the spans of v."),
        "match": Label(
            "matched mode", "1", "Mode of the second model that is paired with this mode of the first model."
        ),
        "match_similarity": Label(
            "similarity of the match", "1", "(u . u') (v . v') for the pair of modes; at most 1."
        ),
        "match_ratio": Label("strength ratio of the match", "1", "s' / s for the pair of modes."),
    }
)


def to_dataset(modes: Modes, metrics: Metrics, bias: BiasTerms, attrs: Mapping[str, str]) -> xr.Dataset:
    """Collects the modes of one model, with their measures and bias terms, in a dataset.

    Returns:
      A dataset with dimensions layer, head, mode, embed, eigen and pair. The variables are `u`, `v`, all fields of
      `Metrics` except the nulls, and the bias terms, whose names start with `bias_`. The attributes of the dataset are
      `attrs`, the intervals expected by chance, whose names start with `null_`, and the versions of libraries.
    """
    variables = {"u": (VECTORS, modes.u), "v": (VECTORS, modes.v)}
    for name, value in metrics._asdict().items():
        if name not in NULL_FIELDS:
            variables[name] = (DIMS.get(name, PER_MODE if value.ndim == 3 else PER_HEAD), value)
    for name, value in bias._asdict().items():
        variables[f"bias_{name}"] = ((*PER_HEAD, "embed") if value.ndim == 3 else PER_HEAD, value)
    null = {f"null_{name}": value for name, value in metrics.null._asdict().items()}
    attrs = {**attrs, **null, **versions()}
    return annotated(xr.Dataset({n: (d, np.asarray(v)) for n, (d, v) in variables.items()}, attrs=attrs), LABELS)


def metrics_of(dataset: xr.Dataset) -> Metrics:
    """Reads the `Metrics` from a dataset that `to_dataset` returned.

    Raises:
      QkjaxError: the dataset lacks a field of `Metrics`.
    """
    try:
        null = Null(*(float(dataset.attrs[f"null_{name}"]) for name in Null._fields))
        names = [name for name in Metrics._fields if name not in NULL_FIELDS]
        return Metrics(*(dataset[name].values for name in names), null, head_null_of(dataset))
    except KeyError as error:
        raise QkjaxError(f"the dataset has no {error}: expected the result of qkjax.analyze") from error


def layer_rows(dataset: xr.Dataset) -> list[Row]:
    """Makes the `layer_table` of a dataset that `to_dataset` returned."""
    rows = layer_table(metrics_of(dataset), BiasTerms(*(dataset[f"bias_{n}"].values for n in BiasTerms._fields)))
    return [row | columns for row, columns in zip(rows, direction_columns(dataset), strict=True)]


def layer_table(metrics: Metrics, bias: BiasTerms) -> list[Row]:
    """A table with one row per layer. The values are means over all heads of the layer whose M is not zero.

    `half_strength_modes` is the smallest number of modes whose s add up to half of sum(s). `key_bias` and `query_bias`
    are the spreads of these bias terms divided by the spread of y_i M y_j (see `BiasTerms`). Columns that start with
    `null_` are half widths of the 95% intervals expected by chance: `null_weighted_cosine` is that of the default null,
    which is "gaussian" if the metrics have no `head_null`. `grouping_heads`, `chance_heads` and `negative_heads` count
    heads above, within and below the intervals of single heads.
    """
    cumulative = np.asarray(metrics.cumulative_strength)
    half = np.where(np.isfinite(cumulative[..., 0]), 1 + (cumulative < 0.5).sum(-1), np.nan)
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
    fields = {name: value for name, value in metrics._asdict().items() if name not in NULL_FIELDS}
    columns |= {name: value for name, value in fields.items() if np.ndim(value) == 2 and name not in columns}
    null = {"null_mean_cosine": metrics.null.mean_cosine}
    means = {name: head_mean(values) for name, values in columns.items()}
    depth = len(means["mean_cosine"])
    return [
        {"layer": i, "relative_depth": i / max(depth - 1, 1), **{n: float(v[i]) for n, v in means.items()},
         **null, **chance}
        for i, chance in enumerate(chance_columns(metrics))
    ]  # fmt: skip


def difference_dataset(difference: Difference, attrs: Mapping[str, str]) -> xr.Dataset:
    """Converts the difference between two models to a dataset with dimensions layer, head and mode.

    Along the dimension `mode`, `query_angles` and `key_angles` list angles, and all other variables list the modes of
    the first model.
    """
    variables = {
        name: (PER_MODE if value.ndim == 3 else PER_HEAD, np.asarray(value))
        for name, value in difference._asdict().items()
    }
    return annotated(xr.Dataset(variables, attrs={**attrs, **versions()}), LABELS)


def difference_of(dataset: xr.Dataset) -> Difference:
    """Reads the `Difference` from a dataset that `difference_dataset` returned."""
    return Difference(*(dataset[name].values for name in Difference._fields))


def format_table(rows: list[Row]) -> str:
    """Formats the main columns of the layer table as text that is at most 80 characters wide.

    The column `weighted` is the mean cosine weighted by strength, `plain` is the unweighted mean cosine, and `chance`
    is the half width of the interval that is expected by chance for `weighted`, by the default null. `rank` is the
    effective rank, and `half` is the number of modes that together have half of the strength.
    """
    columns = {
        "layer": ("layer", "d"),
        "weighted_cosine": ("weighted", ".3f"),
        "mean_cosine": ("plain", ".3f"),
        "null_weighted_cosine": ("chance", ".3f"),
        "effective_rank": ("rank", ".1f"),
        "stable_rank": ("stable", ".1f"),
        "half_strength_modes": ("half", ".1f"),
        "symmetric_share": ("symm.", ".2f"),
        "degenerate_share": ("degen.", ".2f"),
        "key_bias": ("key bias", ".2f"),
    }
    return format_rows(
        [{title: row[name] for name, (title, _) in columns.items()} for row in rows], dict(columns.values())
    )
