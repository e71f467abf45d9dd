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
from qkjax.interaction import dose
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.edit import EDITS, EditedHeads
from qkjax.interaction.edit import edit as edit_heads
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.select import Weights, heads_of, select
from qkjax.vit.tree import with_query_key
from qkjax.weights.checkpoint import Checkpoint

KINDS = ("keep", *EDITS)
IDLE_CONTROL = "the edit drops all modes, so the control with random modes equals the edit"


@dataclass(frozen=True)
class Edit:
    """Specifies an edit of a model: its kind, the selected modes, and whether it is a control.

    A control edits random modes instead of the selected modes, until the size of its change M' - M equals that of the
    edit in every head; see `qkjax.interaction.dose`. Some edits change whole heads: all modes of every edited head, or
    M as a whole. The control of such an edit drops random modes, and never more than the size of the head. For the edit
    "unbias", the size of the change is that of the key bias term. The control of "equalize" always drops random modes,
    because the new strength of the modes depends on which modes are edited.

    Attributes:
      kind: a name in `KINDS`: the name of an edit in `interaction.edit`, or "keep", which drops the modes that are not
        selected. The terms "layers=" and "heads=" in the selection limit "keep" to some heads.
      selection: selection of modes, as text; see `interaction.select`.
      key_bias: whether edited heads keep the key bias term, which makes some keys attractive to all queries.
      control: random seed of a control. None if the edit is not a control.
      match: the measure of shares in the selection, and the measure in which controls are matched: "strength", the
        squared strength of modes, or "logits", the variance of the attention logits over images.
    """

    kind: str
    selection: str = "all"
    key_bias: bool = True
    control: int | None = None
    match: dose.Match = "strength"


class ResolvedEdit(NamedTuple):
    """An edit with a weight for each mode of a model; the attributes are arguments of `interaction.edit.edit`.

    Attributes:
      kind: name of an edit of `interaction.edit`.
      weights: how much of each mode is edited, from 0 to 1.
      key_bias: whether edited heads keep the key bias term.
      share: size of the change of each head, divided by the size of the head, in the measure of the edit.
      heads: the heads that are edited.
    """

    kind: str
    weights: Weights
    key_bias: bool
    share: Float[np.ndarray, "layers heads"]
    heads: Bool[np.ndarray, "layers heads"]


def resolve(edit: Edit, metrics: Metrics, sizes: Mapping[str, dose.Sizes]) -> ResolvedEdit:
    """Computes, for each mode of a model, the weight with which an edit applies to it.

    Args:
      edit: the edit.
      metrics: measures of the modes.
      sizes: sizes in each measure, by the name of the measure.

    Raises:
      QkjaxError: the kind of edit is unknown, or the selection is invalid.
    """
    kind, control, measure = edit.kind, edit.control, sizes[edit.match]
    if kind not in KINDS:
        raise QkjaxError(f"unknown edit {kind!r}{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    weights = select(edit.selection, metrics, keep=kind == "keep", sizes=measure)
    if kind == "drop":  # drops the selected part of each mode
        weights = dose.weights_of("drop", np.sqrt(weights.astype(np.float64)))
    kind = "drop" if kind == "keep" else kind
    touched = weights.any(axis=-1)
    # A head of which "keep" keeps all modes is still edited if key_bias is False, because it loses its key bias.
    heads = touched if edit.key_bias or edit.kind != "keep" else heads_of(edit.selection, metrics)
    s = metrics.singular_value
    if control is not None:
        target = np.round(changed_share(kind, weights, s, measure), 4) * dose.total_size(s, measure)
        if kind in dose.WHOLE or kind == "equalize" or (weights[touched] == 1).all():
            kind, target = "drop", np.minimum(target, dose.total_size(s, measure))
        # The share is rounded, so that edits of equal size have identical controls.
        weights = dose.weights_of(kind, dose.random_parts(control, dose.terms(kind, s, measure), target))
    return ResolvedEdit(kind, weights, edit.key_bias, changed_share(kind, weights, s, measure), heads)


def changed_share(kind: str, weights: Weights, s: dose.PerMode, sizes: dose.Sizes) -> Float[np.ndarray, "layers heads"]:
    """The size of the change of each head, divided by the size of the head; 0 for heads without an interaction."""
    total = dose.total_size(s, sizes)
    return dose.change(kind, weights, s, sizes) / np.where(total > 0, total, 1)


def strength_of(parts: QueryKey, metrics: Metrics) -> dose.Sizes:
    """Sizes in the measure "strength" of a model; see `qkjax.interaction.dose`."""
    return dose.strength_sizes(metrics, _bias_share(parts))


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
      control: random seed of a control, which edits random modes instead of the selected modes, with the same squared
        norm of the change; see `Edit`.
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
    requested, metrics = Edit(kind, select, key_bias, control), measure(modes)
    plan = resolve(requested, metrics, {"strength": strength_of(parts, metrics)})
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
