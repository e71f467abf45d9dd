"""Computes shares of position and content in the logits from the result of `token_statistics`, tables and a summary.

Intervals resample photographs. The position factor is held fixed in the resamples.
"""

from itertools import product

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.activations.position_content import KEY_PARTS, QUERY_PARTS
from qkjax.analyses.tokens.photographs import photograph_resamples
from qkjax.results.rows import Row, head_mean

PAIRS = tuple(f"{query}_{key}" for query, key in product(QUERY_PARTS, KEY_PARTS))
"""Names of the parts of the variance of the logits: the part of the query, and the part of the key."""
COSINES = ("weighted_cosine", "folded_cosine", "map_correlation", "content_map_correlation", "position_map_correlation")


def head_shares(
    dataset: xr.Dataset,
    tokens: str = "patches",
    image_weights: Float[np.ndarray, "*resamples images"] | None = None,
) -> Float[np.ndarray, "*resamples layers heads pairs"]:
    """The shares of `PAIRS` in the variance of the logits of every head; they add up to 1. NaN if nothing varies.

    Args:
      dataset: the result of `token_statistics`.
      tokens: the tokens between which the logits are, "patches" or "all".
      image_weights: weights of the images in each bootstrap resample; if None, all images have equal weights.
    """
    parts = dataset.logit_parts.sel(tokens=tokens).transpose("image", ...).values.astype(np.float64)
    weights = np.full(len(parts), 1 / len(parts)) if image_weights is None else image_weights
    sums = np.tensordot(weights, parts.reshape(*parts.shape[:3], -1), axes=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums / sums.sum(-1, keepdims=True)


def tokens_table(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per layer. All values except the shares of the tokens' variance are means over heads.

    - `weighted_cosine` and `folded_cosine`: weighted cosine in the plain frame, and with the LayerNorm scale folded in.
    - `map_correlation`, `content_map_correlation`, `position_map_correlation`: map correlation of whole tokens, of
      their content, and of their position factor.
    - `null_map_correlation`: half width of the 95% interval of `map_correlation` for random kernels.
    - `position_share` and `position_share_halves`: share of the position factor in the variance of tokens; see
      `TokenStatistics`.
    - `logit_spread`: root of the mean variance of the logits between patches, centred over keys.
    - `content_content`, `content_position` and the other `PAIRS`: shares in the variance of the logits between patches,
      with the ends of 95% intervals over photographs.
    - `all_content_content` and so on: the same shares between all tokens, if there are special tokens.
    """
    means = {name: head_mean(values) for name, values in _by_head(dataset).items()}
    ends = _ends(_over_heads(_resampled(dataset)))
    null = dataset.null_map_correlation.sel(part="whole", scope="layer").values
    layers = dataset.sizes["layer"]
    rows = []
    for layer in range(layers):
        row: Row = {"layer": layer, "relative_depth": layer / max(layers - 1, 1)}
        row |= {name: float(means[name][layer]) for name in COSINES}
        row["null_map_correlation"] = float(null[layer])
        row |= {name: float(dataset[name][layer]) for name in ("position_share", "position_share_halves")}
        own = {name: float(values[layer]) for name, values in means.items() if name not in COSINES}
        rows.append(row | _with_ends(own, ends[:, layer]))
    return rows


def tokens_by_head(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per head. The columns are those of `tokens_table` that depend on the head."""
    columns, ends = _by_head(dataset), _ends(_resampled(dataset))
    null = dataset.null_map_correlation.sel(part="whole", scope="head").values
    rows = []
    for layer, head in np.ndindex(dataset.sizes["layer"], dataset.sizes["head"]):
        values = {name: float(x[layer, head]) for name, x in columns.items()}
        row: Row = {"layer": layer, "head": head, **{name: values.pop(name) for name in COSINES}}
        row["null_map_correlation"] = float(null[layer])
        rows.append(row | _with_ends(values, ends[:, layer, head]))
    return rows


def tokens_by_mode(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per mode: its cosine, its map correlations, and the shares of the parts in its maps."""
    columns = {name: dataset[name].values for name in ("singular_value", "cosine")}
    for part in dataset.part.values:
        columns[f"{'' if part == 'whole' else f'{part}_'}map_correlation"] = dataset.map_correlation.sel(
            part=part
        ).values
    columns["map_strength"] = dataset.map_strength.sel(part="whole").values
    columns |= {f"query_{part}": dataset.query_share.sel(query_part=part).values for part in QUERY_PARTS}
    columns |= {f"key_{part}": dataset.key_share.sel(key_part=part).values for part in KEY_PARTS}
    return [
        {"layer": i, "head": j, "mode": n, **{name: float(values[i, j, n]) for name, values in columns.items()}}
        for i, j, n in np.ndindex(dataset.cosine.shape)
    ]


def overall(dataset: xr.Dataset) -> dict[str, tuple[float, float, float]]:
    """The mean share of each of `PAIRS` over all heads, and the ends of its 95% interval over photographs."""
    mean, resampled = (_over_heads(x).mean(-2) for x in (head_shares(dataset), _resampled(dataset)))
    return {name: (float(mean[i]), *map(float, _ends(resampled[:, i]))) for i, name in enumerate(PAIRS)}


def summary(dataset: xr.Dataset) -> str:
    """Summarises the result in words: the largest parts of the logits, and the layers with extreme map correlations."""
    shares = sorted(overall(dataset).items(), key=lambda item: -item[1][0])
    listed = ", ".join(
        f"{name.replace('_', '-')} {mean:.2f} [{low:.2f}, {high:.2f}]" for name, (mean, low, high) in shares[:3]
    )
    by_layer = head_mean(dataset.head_map_correlation.sel(part="whole").values)
    cosine = head_mean(dataset.folded_cosine.values)
    most, least = int(np.nanargmax(by_layer)), int(np.nanargmin(by_layer))
    null = dataset.null_map_correlation.sel(part="whole", scope="layer").values
    return (
        f"The largest parts of the variance of the logits between patches are {listed} (part of the query, part of the "
        "key; means over all heads, 95% intervals over photographs). The map correlation is highest in layer "
        f"{most}: {by_layer[most]:.2f} (weighted cosine with folded scale {cosine[most]:.2f}; 95% of layers with "
        f"random kernels lie within {null[most]:.2f} of 0), and lowest in layer {least}: {by_layer[least]:.2f} "
        f"({cosine[least]:.2f}; {null[least]:.2f})."
    )


def _by_head(dataset: xr.Dataset) -> dict[str, Float[np.ndarray, "layers heads"]]:
    """The columns of the tables that depend on the head."""
    by_part = dataset.head_map_correlation
    columns = {"weighted_cosine": dataset.weighted_cosine.values, "folded_cosine": dataset.folded_cosine.values}
    columns |= {
        name: by_part.sel(part=part).values
        for name, part in zip(COSINES[2:], ("whole", "content", "position"), strict=True)
    }
    total = dataset.logit_parts.sel(tokens="patches").sum(("query_part", "key_part")).mean("image")
    columns["logit_spread"] = np.sqrt(np.maximum(total.transpose("layer", "head").values, 0))
    for kind in dataset.tokens.values:
        prefix = "" if kind == "patches" else f"{kind}_"
        shares = head_shares(dataset, str(kind))
        columns |= {f"{prefix}{name}": shares[..., i] for i, name in enumerate(PAIRS)}
    return columns


def _resampled(dataset: xr.Dataset) -> Float[np.ndarray, "resamples layers heads pairs"]:
    return head_shares(dataset, "patches", photograph_resamples(dataset.photograph.values))


def _over_heads(
    shares: Float[np.ndarray, "*resamples layers heads pairs"],
) -> Float[np.ndarray, "*resamples layers pairs"]:
    return head_mean(np.moveaxis(shares, -2, -1))


def _ends(resampled: Float[np.ndarray, "resamples *rest"]) -> Float[np.ndarray, "2 *rest"]:
    """The ends of 95% intervals; NaN if there is only one photograph."""
    return np.quantile(resampled, [0.025, 0.975], axis=0)


def _with_ends(values: dict[str, float], ends: Float[np.ndarray, "2 pairs"]) -> Row:
    """A row in which the ends of its interval follow each of `PAIRS`."""
    row: Row = {}
    for name, value in values.items():
        row[name] = value
        if name in PAIRS:
            low, high = ends[:, PAIRS.index(name)]
            row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return row
