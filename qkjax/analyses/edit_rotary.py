"""Edits of the modes of a model with rotary positions, and what part of its interaction they cannot reach.

The modes are those of the mean over places, Mbar. New kernels have the edited Mbar, and keep the rotation; see
`qkjax.interaction.rotary.edit`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from qkjax.analyses.decomposition import folded_kernels
from qkjax.errors import QkjaxError
from qkjax.interaction.edit import EditedHeads
from qkjax.interaction.frame import Frame
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.bias import spread
from qkjax.interaction.rotary.edit import edit_kernels, out_of_reach
from qkjax.interaction.rotary.mean import mean_kernels
from qkjax.vit.config import ViTConfig

PerHead = Float[np.ndarray, "layers heads"]


class RotaryHeads(NamedTuple):
    """The parameters of all heads after an edit of the modes of Mbar, and what the edit leaves.

    Attributes:
      heads: query and key parameters.
      out_of_reach: share of E ||M(delta)||_F^2 of each edited head in purely positional planes, which no edit of its
        modes can change; 0 for other heads.
      place_change: share of E ||M'(delta) - M(delta)||_F^2 that is not the change of Mbar, but depends on the places;
        NaN for heads whose interaction does not change.
      key_bias_change: spread of the change of the key bias term, relative to the spread of this term, for an edit that
        is meant to retain it; 0 if the term is retained exactly, or removed.
    """

    heads: EditedHeads
    out_of_reach: PerHead
    place_change: PerHead
    key_bias_change: PerHead


def require_own_width(config: ViTConfig, exact: bool) -> None:
    """Checks that heads of a model with rotary positions are not to be widened.

    Raises:
      QkjaxError: `exact` is set, but the model has rotary positions.
    """
    if exact and config.rotary is not None:
        raise QkjaxError(
            "exact=True received a model with rotary positions, whose heads have no planes for further columns: do not "
            "pass exact; all edits but symmetric and antisymmetric are exact for the mean over places"
        )


def rotary_bias_share(parts: QueryKey) -> PerHead:
    """The squared spread of bq R(delta) Wk^T y_j, divided by the squared spread of y_i Mbar y_j."""
    angles, pairs = np.asarray(parts.rotation.angles), parts.rotation.pairs
    query, key = folded_kernels(parts, fold_scale=True, center=parts.norm_centers)
    bias = np.asarray(spread(parts.query_bias[:, None], key, angles, pairs), np.float64)
    mean = np.asarray(spread(*mean_kernels(query, key, angles, pairs), np.zeros_like(angles), pairs), np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (bias / mean) ** 2


def edit_rotary(
    parts: QueryKey,
    modes: Modes,
    kind: str,
    weights: Float[np.ndarray, "layers heads rank"],
    key_bias: bool,
    heads: Bool[np.ndarray, "layers heads"],
) -> RotaryHeads:
    """Edits the modes of the mean over places.

    Args:
      parts: query and key parameters, with the rotation of the grid whose mean the modes are.
      modes: modes of the mean over places, the result of `decompose(checkpoint)`.
      kind: name of an edit of `qkjax.interaction.edit`.
      weights: how much of each mode is edited, from 0 to 1.
      key_bias: whether edited heads keep the terms of the query bias, which depend on the key.
      heads: the heads that are edited.
    """
    angles, pairs = np.asarray(parts.rotation.angles), parts.rotation.pairs
    plain = replace(modes, frame=Frame())
    edited = edit_kernels(parts.query_kernel, parts.key_kernel, angles, plain, kind, weights, pairs)
    heads = np.asarray(heads)
    removed = heads & (kind == "unbias" or not key_bias)
    bias = np.where(removed[..., None], 0, parts.query_bias).astype(np.float32)
    new = EditedHeads(edited.query_kernel, edited.key_kernel, bias, np.asarray(parts.key_bias), edited.retained)
    reach = np.where(heads, np.asarray(out_of_reach(parts.query_kernel, parts.key_kernel, angles, pairs)), 0)
    place = 1 - np.asarray(edited.mean_change, np.float64)
    change = np.asarray(edited.key_kernel) - parts.key_kernel
    before, after = (
        np.asarray(spread(bias[:, None], key, angles, pairs), np.float64) for key in (parts.key_kernel, change)
    )
    return RotaryHeads(new, reach.astype(np.float64), place, after / np.where(before > 0, before, 1))


def rotary_notes(edited: RotaryHeads, heads: Bool[np.ndarray, "layers heads"]) -> list[str]:
    """Notes for the user: what share of the edited heads the edit cannot reach, and what it changes besides."""
    notes, kept = [], np.asarray(edited.heads.retained)
    if not heads.any():
        return ["the selection is empty: nothing is edited"]
    if kept.min() < 0.9999:
        layer, head = np.unravel_index(kept.argmin(), kept.shape)
        notes.append(
            f"kernels with the model's planes represent {kept[heads].mean():.4f} of the squared strength of an edited "
            f"interaction on average, and at least {kept.min():.4f} (layer {layer}, head {head})"
        )
    reach = edited.out_of_reach[heads]
    if reach.max() > 0:
        notes.append(
            f"{reach.mean():.1%} of the squared strength of the edited heads, averaged over places (at most "
            f"{reach.max():.1%} in a head), is in planes that are purely positional, which the edit cannot change"
        )
    place = edited.place_change[heads]
    if np.isfinite(place).any() and np.nanmax(place) > 1e-4:
        notes.append(
            f"the edit acts on the mean over places; {np.nanmean(place):.1%} of the squared change of the edited heads "
            f"depends on the places of query and key (at most {np.nanmax(place):.1%} in a head)"
        )
    if edited.key_bias_change[heads].max() > 1e-4:
        notes.append(
            "the edit changes key kernels, and with them the key bias term of the edited heads, by "
            f"{edited.key_bias_change[heads].mean():.1%} of its spread on average"
        )
    return notes


def rotary_arrays(edited: RotaryHeads) -> Mapping[str, PerHead]:
    """What an edit leaves, by the names of the variables of `qkjax.ablate`."""
    return {"out_of_reach": edited.out_of_reach, "place_change": edited.place_change}
