"""Makes tables of each mode's contribution to the attention logits of one image, and the rows of contact sheets."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import UInt8

from qkjax.activations.project import Maps
from qkjax.figures.sheets import SheetRow, Tile
from qkjax.interaction.mode_name import ModeName
from qkjax.results.annotate import Label
from qkjax.results.modes import PER_HEAD
from qkjax.results.rows import Row, head_mean

LABELS = {
    "variance_share": Label(
        "share of the variance", "1", "Share of the variance of the logits over keys that a mode explains."
    ),
    "attention_share": Label(
        "share, attention-weighted", "1", "The same share, but with keys weighted by their attention."
    ),
    "key_bias_variance_share": Label(
        "share of the key bias", "1", "Share of the key bias term, with equal weights for all keys."
    ),
    "key_bias_attention_share": Label(
        "share of the key bias", "1", "Share of the key bias term, with keys weighted by their attention."
    ),
    "query_bias_variance_share": Label(
        "share of the query bias", "1", "Share of y_i Wq R(delta) bk^T, with equal weights for all keys."
    ),
    "query_bias_attention_share": Label(
        "share of the query bias", "1", "Share of y_i Wq R(delta) bk^T, with keys weighted by their attention."
    ),
    "offset_bias_variance_share": Label(
        "share of the offset bias", "1", "Share of bq R(delta) bk^T, with equal weights for all keys."
    ),
    "offset_bias_attention_share": Label(
        "share of the offset bias", "1", "Share of bq R(delta) bk^T, with keys weighted by their attention."
    ),
    "rest_variance_share": Label(
        "share of no mode", "1", "Share of the planes that no mode includes, with equal weights for all keys."
    ),
    "rest_attention_share": Label(
        "share of no mode", "1", "Share of the planes that no mode includes, with keys weighted by their attention."
    ),
    "singular_value": Label("singular value", "1", "Strength s of the mode."),
    "cosine": Label("cosine", "1", "Cosine between the query direction and the key direction of the mode."),
}
Contribution = Literal["variance", "attention"]


OTHER_TERMS = {
    "key_bias": "key bias",
    "query_bias": "query bias",
    "offset_bias": "offset bias",
    "rest": "no mode",
}
"""Terms of the logits that belong to no mode, with names for tables; only the first exists without rotary positions."""


def other_terms(dataset: xr.Dataset) -> dict[str, str]:
    """The entries of `OTHER_TERMS` whose shares the dataset contains."""
    return {term: name for term, name in OTHER_TERMS.items() if f"{term}_variance_share" in dataset}


def ranked_modes(dataset: xr.Dataset, contribution: Contribution) -> np.ndarray:
    """The indices of the modes of each head, sorted by share (largest first): an array (layers, heads, rank)."""
    return np.argsort(-dataset[f"{contribution}_share"].values, axis=-1, kind="stable")


def mode_rows(dataset: xr.Dataset, contribution: Contribution) -> list[Row]:
    """A table with one row per mode; `place` is the rank of the mode in its head, 0 for the largest share."""
    place = np.argsort(ranked_modes(dataset, contribution), axis=-1)
    columns = ("singular_value", "cosine", "variance_share", "attention_share")
    values = {name: dataset[name].values for name in columns}
    return [
        {"layer": at[0], "head": at[1], "mode": at[2], "place": int(place[at])}
        | {name: float(values[name][at]) for name in columns}
        for at in np.ndindex(place.shape)
    ]


def head_rows(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per head: the sum of the shares of its modes, and the share of each other term."""
    rows = []
    for at in np.ndindex(*(dataset.sizes[name] for name in PER_HEAD)):
        row: Row = {"layer": at[0], "head": at[1]}
        for kind in ("variance", "attention"):
            row[f"modes_{kind}_share"] = float(dataset[f"{kind}_share"].values[at].sum())
            for term in other_terms(dataset):
                row[f"{term}_{kind}_share"] = float(dataset[f"{term}_{kind}_share"].values[at])
        rows.append(row)
    return rows


def layer_rows(dataset: xr.Dataset, contribution: Contribution = "variance", top: int = 6) -> list[Row]:
    """A table with one row per layer, with means over heads.

    The columns are the share of the first mode (the mode with the largest share), the share of the first `top` modes,
    the share of all modes, and the share of each other term: the key bias, and with rotary positions also the query
    bias, the offset bias, and the planes that no mode includes.
    """
    shares = dataset[f"{contribution}_share"].values
    sorted_shares = -np.sort(-shares, axis=-1)
    columns = {
        "first mode": sorted_shares[..., 0],
        f"first {top}": sorted_shares[..., :top].sum(-1),
        "all modes": shares.sum(-1),
    }
    columns |= {name: dataset[f"{term}_{contribution}_share"].values for term, name in other_terms(dataset).items()}
    means = {name: head_mean(values) for name, values in columns.items()}
    return [{"layer": i, **{name: float(v[i]) for name, v in means.items()}} for i in range(len(shares))]


def summary(dataset: xr.Dataset) -> str:
    """Summarises the result in words: the layers with the largest share of one mode and of the key bias."""
    rows = layer_rows(dataset)
    most = max(rows, key=lambda row: row["first mode"])
    bias = max(rows, key=lambda row: row["key bias"])
    chance = 1 / dataset.sizes["mode"]
    text = (
        f"The largest share of the logits' variance that a single mode explains is in layer {most['layer']}: "
        f"{most['first mode']:.0%}, averaged over heads (equal shares would be {chance:.1%}). The key bias explains "
        f"the largest share in layer {bias['layer']}: {bias['key bias']:.0%}. These numbers are for one image, so they "
        "have no interval."
    )
    return text + _rotary_summary(dataset, rows) if "modes" in dataset.attrs else text


def _rotary_summary(dataset: xr.Dataset, rows: Sequence[Row]) -> str:
    most = max(rows, key=lambda row: row["no mode"])
    return (
        f" The modes are those of the {dataset.attrs['modes']}, and their terms include the rotation. Planes that no "
        f"mode includes explain at most {most['no mode']:.0%} (layer {most['layer']})."
    )


def contact_rows(
    shares: xr.Dataset,
    maps: Maps,
    pixels: UInt8[np.ndarray, "height width 3"],
    layer: int,
    heads: Sequence[int],
    *,
    top: int = 6,
    contribution: Contribution = "variance",
) -> list[SheetRow]:
    """The rows of `figures.contact_sheet`: for each head of a layer, the modes with the largest shares.

    Args:
      shares: the result of `attribute_logits`.
      maps: the result of `query_key_maps` for the same photograph.
      pixels: the result of `visible_picture` for the same photograph.
      layer: the layer.
      heads: the heads, with one row each.
      top: number of modes per head.
      contribution: kind of share by which modes are ranked.
    """
    order = ranked_modes(shares, contribution)
    cosine, share = shares.cosine.values, shares[f"{contribution}_share"].values
    rows = []
    for head in heads:
        tiles = []
        for mode in order[layer, head, :top]:
            query, key = (x[layer, 0, :, :, head, mode] for x in (maps.query, maps.key))
            # Both signs are the same mode; the sign that the image excites more is drawn.
            sign = 1 if query.max() * key.max() >= query.min() * key.min() else -1
            name = str(ModeName(layer, head, int(mode), sign)).split()[-1]
            caption = f"{name}  {share[layer, head, mode]:.0%}\ncos {cosine[layer, head, mode]:.2f}"
            tiles.append(Tile(pixels, sign * query, sign * key, caption))
        rows.append(SheetRow(f"L{layer} H{head}", tiles))
    return rows
