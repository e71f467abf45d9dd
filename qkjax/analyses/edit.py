"""Edits the query-key interactions of a checkpoint, and returns a new checkpoint. (The paper does not edit models.)"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from qkjax.analyses.decomposition import decompose, query_key
from qkjax.analyses.edit_rotary import edit_rotary, require_own_width, rotary_arrays, rotary_bias_share, rotary_notes
from qkjax.analyses.usable import require_finite_heads, require_finite_modes
from qkjax.analyses.wide_heads import scaled, wide_columns, widened
from qkjax.errors import QkjaxError, nearest
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.edit import EDITS, EditedHeads
from qkjax.interaction.edit import edit as edit_heads
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.select import Weights, heads_of, random_modes, select, strength
from qkjax.vit.tree import with_query_key
from qkjax.weights.checkpoint import Checkpoint

KINDS = ("keep", *EDITS)
IDLE_CONTROL = "the edit drops all modes, so the control with random modes equals the edit"


@dataclass(frozen=True)
class Edit:
    """Specifies an edit of a model: its kind, the selected modes, and whether it is a control.

    Some edits change whole heads: all modes of every edited head, or M as a whole. The control of such an edit drops
    random modes whose squared strength equals that of the change. For the edits "symmetric" and "antisymmetric", the
    squared strength of the change is that of the part of M that the edit removes. For the edit "unbias", the squared
    strength of the change is the squared spread of the key bias term (see `interaction.bias`). For all other edits, the
    squared strength of the change is ||M' - M||_F^2. A control never drops more than the squared strength of the head.

    Attributes:
      kind: a name in `KINDS`: the name of an edit in `interaction.edit`, or "keep", which drops the modes that are not
        selected. The terms "layers=" and "heads=" in the selection limit "keep" to some heads.
      selection: selection of modes, as text; see `interaction.select`.
      key_bias: whether edited heads keep the key bias term, which makes some keys attractive to all queries.
      control: random seed of a control, which edits random modes of the same strength instead of the selected modes.
        None if the edit is not a control.
    """

    kind: str
    selection: str = "all"
    key_bias: bool = True
    control: int | None = None


class ResolvedEdit(NamedTuple):
    """An edit with a weight for each mode of a model; the attributes are arguments of `interaction.edit.edit`.

    Attributes:
      kind: name of an edit of `interaction.edit`.
      weights: how much of each mode is edited, from 0 to 1.
      key_bias: whether edited heads keep the key bias term.
      share: share of the squared strength of each head that is edited; for edits of whole heads, the share that is
        removed.
      heads: the heads that are edited.
    """

    kind: str
    weights: Weights
    key_bias: bool
    share: Float[np.ndarray, "layers heads"]
    heads: Bool[np.ndarray, "layers heads"]


def resolve(edit: Edit, parts: QueryKey, modes: Modes, metrics: Metrics) -> ResolvedEdit:
    """Computes, for each mode of a model, the weight with which an edit applies to it.

    Raises:
      QkjaxError: the kind of edit is unknown, or the selection is invalid.
    """
    kind, control = edit.kind, edit.control
    if kind not in KINDS:
        raise QkjaxError(f"unknown edit {kind!r}{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    weights = select(edit.selection, metrics, keep=kind == "keep")
    kind = "drop" if kind == "keep" else kind
    symmetric = np.asarray(metrics.symmetric_share, np.float64)
    touched = weights.any(axis=-1)
    # A head of which "keep" keeps all modes is still edited if key_bias is False, because it loses its key bias.
    heads = touched if edit.key_bias or edit.kind != "keep" else heads_of(edit.selection, metrics)
    whole = kind in ("symmetric", "antisymmetric", "unbias")
    if whole:
        taken = {"symmetric": 1 - symmetric, "antisymmetric": symmetric, "unbias": _bias_share(parts)}[kind]
        share = np.where(touched, np.clip(np.nan_to_num(taken), 0, 1), 0.0)
    else:
        share = strength(weights, modes.s)
        whole = (weights[touched] == 1).all()
        if whole and control is not None:
            share = np.where(touched, np.clip(np.nan_to_num(_change(kind, metrics)), 0, 1), 0.0)
    if control is not None:
        kind, weights = "drop" if whole else kind, random_modes(control, share, modes.s)
    return ResolvedEdit(kind, weights, edit.key_bias, share, heads)


def _change(kind: str, metrics: Metrics) -> Float[np.ndarray, "layers heads"]:
    """The relative change ||M' - M||_F^2 / ||M||_F^2 of each head if all its modes are edited."""
    s, cosine = (np.asarray(x, np.float64) for x in (metrics.singular_value, metrics.cosine))
    energy = (s**2).sum(-1)
    level = np.sqrt((s**2).mean(-1, keepdims=True))
    change = {
        "drop": energy,
        "flip": 4 * energy,
        "rotate": (s**2 * 2 * (1 - cosine)).sum(-1),  # |u - v|^2
        "equalize": ((level - s) ** 2).sum(-1),
    }[kind]
    with np.errstate(invalid="ignore"):  # heads without an interaction
        return change / energy


def is_idle_control(edit: Edit, plan: ResolvedEdit) -> bool:
    """Whether a control equals the edit itself, because the edit drops all modes of all edited heads."""
    if edit.control is None or edit.kind not in ("drop", "keep") or not plan.share.any():
        return False
    return bool(plan.share[plan.share > 0].min() > 0.9999)


def _bias_share(parts: QueryKey) -> Float[np.ndarray, "layers heads"]:
    """The squared spread of the key bias term w . y_j, divided by the squared spread of y_i M y_j."""
    if parts.rotation is not None:
        return rotary_bias_share(parts)
    terms = bias_terms(parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.asarray(terms.key_spread, np.float64) / np.asarray(terms.interaction_spread)) ** 2


def edit(
    checkpoint: Checkpoint,
    kind: str,
    select: str = "all",
    *,
    key_bias: bool = True,
    control: int | None = None,
    exact: bool = False,
) -> Checkpoint:
    """Returns a checkpoint in which some modes are edited.

    For a model with rotary positions, the modes are those of the mean over places, and the new kernels keep the
    rotation; see `qkjax.interaction.rotary.edit`. Warnings state what share of the interaction the edit cannot reach.

    Args:
      checkpoint: the original checkpoint, which is not changed.
      kind: name of the edit: "drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric" or "unbias";
        see `qkjax.interaction.edit`.
      select: selection of modes, such as "cosine>0.5 layers=0-3"; see `qkjax.interaction.select`.
      key_bias: whether edited heads keep the key bias term; if False, the edit also removes this term.
      control: random seed of a control, which edits random modes of the same strength instead of the selected modes;
        see `Edit`.
      exact: whether to widen all heads to 2 head_dim + 1 columns, which represent every edit exactly. big_vision's
        model does not support such heads. Not for models with rotary positions.

    Returns:
      The edited checkpoint. `edit` warns if the kernels do not represent the edit exactly, if the selection is empty,
      or if the control equals the edit.

    Raises:
      QkjaxError: the kind of edit is unknown, the selection is invalid, or `exact` is set for a model with rotary
        positions.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> without = qkjax.edit(checkpoint, "drop", "cosine>0.5 layers=0-3")
      >>> bool(qkjax.decompose(without).s[0, 0, -1] < 1e-3)
      True
    """
    result, notes = edit_with_notes(checkpoint, kind, select, key_bias=key_bias, control=control, exact=exact)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return result


def edit_with_notes(
    checkpoint: Checkpoint,
    kind: str,
    select: str = "all",
    *,
    key_bias: bool = True,
    control: int | None = None,
    exact: bool = False,
) -> tuple[Checkpoint, list[str]]:
    """Does the same as `edit`, but returns the warnings as a list of notes.

    Raises:
      QkjaxError: the kind of edit is unknown, or the selection is invalid.
    """
    require_own_width(checkpoint.config, exact)
    parts = query_key(checkpoint)
    modes = decompose(checkpoint)
    require_finite_modes(modes, checkpoint.name)
    requested = Edit(kind, select, key_bias, control)
    plan = resolve(requested, parts, modes, measure(modes))
    columns = wide_columns(checkpoint) if exact else None
    heads, notes, _ = realised(plan, parts, modes, columns)
    kernels = {"query kernels": heads.query_kernel, "key kernels": heads.key_kernel}
    biases = {"query biases": heads.query_bias, "key biases": heads.key_bias}
    edited = {name: np.moveaxis(kernel, 2, 1) for name, kernel in kernels.items()} | biases
    require_finite_heads({f"edited {name}": value for name, value in edited.items()}, checkpoint.name)
    if is_idle_control(requested, plan):
        notes.append(IDLE_CONTROL)
    if exact:
        checkpoint, heads = widened(checkpoint, columns), scaled(heads, checkpoint)
    return replace(checkpoint, params=with_query_key(checkpoint.params, jax.tree.map(np.asarray, heads))), notes


def realised(
    plan: ResolvedEdit, parts: QueryKey, modes: Modes, columns: int | None
) -> tuple[EditedHeads, list[str], Mapping[str, np.ndarray]]:
    """Computes the parameters of all heads after an edit, notes for the user, and what a rotary edit leaves.

    Args:
      plan: the edit.
      parts: query and key parameters of the model, with their rotation if it has rotary positions.
      modes: the result of `decompose(checkpoint)`.
      columns: number of columns of the new kernels, or None for head_dim; see `interaction.edit.edit`.
    """
    arguments = plan.kind, plan.weights
    if parts.rotation is not None:
        edited = edit_rotary(parts, modes, *arguments, plan.key_bias, plan.heads)
        return edited.heads, rotary_notes(edited, plan.heads), rotary_arrays(edited)
    heads = edit_heads(parts, modes, *arguments, columns, plan.key_bias, plan.heads)
    return heads, notes_on(plan, heads, parts.query_kernel.shape[-1]), {}


def notes_on(plan: ResolvedEdit, heads: EditedHeads, head_dim: int) -> list[str]:
    """Notes for the user: whether the kernels represent the edit only approximately, and whether nothing is edited."""
    notes, kept = [], np.asarray(heads.retained)
    if kept.min() < 0.9999:
        layer, head = np.unravel_index(kept.argmin(), kept.shape)
        notes.append(
            f"kernels with {head_dim} columns represent {kept.mean():.4f} of the squared strength of an edited "
            f"interaction on average, and at least {kept.min():.4f} (layer {layer}, head {head}); wider heads would "
            "be exact"
        )
    if not plan.heads.any():
        notes.append("the selection is empty: nothing is edited")
    return notes
