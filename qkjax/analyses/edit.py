"""A checkpoint whose interactions are edited is a checkpoint like any other. (An extension of the paper.)"""

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from qkjax.errors import QkjaxError, nearest
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.edit import EDITS, EditedHeads
from qkjax.interaction.edit import edit as edit_heads
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.select import Weights, heads_of, random_modes, select, strength
from qkjax.vit.tree import query_key, widened_heads, with_query_key
from qkjax.weights.checkpoint import Checkpoint

KINDS = ("keep", *EDITS)
IDLE_CONTROL = "all modes are dropped, so that random ones are the same: the control is the edit itself"


@dataclass(frozen=True)
class Edit:
    """What is done to a model, in words.

    Attributes:
      kind: one of `KINDS`: those of `interaction.edit`, or "keep", which drops all other modes of the heads that
        the selection's layers and heads are.
      selection: of modes, see `interaction.select`.
      key_bias: keep what the query bias makes of keys; without it, it is taken out of the edited heads.
      control: seed; random modes as strong are edited in place of those selected. Of an edit of whole heads the
        control is to drop random modes that hold as much as it changes: for the symmetric part the squared
        strength of the antisymmetric one and the other way round, for `unbias` the squared spread of the bias term
        (`interaction.bias`), for all others ||M' - M||_F^2, and no more than all.
    """

    kind: str
    selection: str = "all"
    key_bias: bool = True
    control: int | None = None


class ResolvedEdit(NamedTuple):
    """An edit, worked out for a model's modes: what `interaction.edit.edit` takes.

    Attributes:
      share: of each head's squared strength, how much is edited (or taken away, for edits of whole heads).
      heads: that are edited.
    """

    kind: str
    weights: Weights
    key_bias: bool
    share: Float[np.ndarray, "layers heads"]
    heads: Bool[np.ndarray, "layers heads"]


def resolve(edit: Edit, parts: QueryKey, modes: Modes, metrics: Metrics) -> ResolvedEdit:
    """What an edit does to each mode of a model.

    Raises:
      QkjaxError: an unknown kind, or an invalid selection.
    """
    kind, control = edit.kind, edit.control
    if kind not in KINDS:
        raise QkjaxError(f"unknown edit {kind!r}{nearest(kind, KINDS)}; the edits are {', '.join(KINDS)}")
    weights = select(edit.selection, metrics, keep=kind == "keep")
    kind = "drop" if kind == "keep" else kind
    symmetric = np.asarray(metrics.symmetric_share, np.float64)
    touched = weights.any(axis=-1)
    # Heads that are kept whole are edited, too, where their bias goes.
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
    """||M' - M||_F^2 / ||M||_F^2 of an edit of all modes of a head."""
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
    """Whether a control is the edit itself: random ones of all modes of all heads that are dropped."""
    if edit.control is None or edit.kind not in ("drop", "keep") or not plan.share.any():
        return False
    return bool(plan.share[plan.share > 0].min() > 0.9999)


def _bias_share(parts: QueryKey) -> Float[np.ndarray, "layers heads"]:
    """The squared spread of w . y_j in units of that of y_i M y_j."""
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
    """The checkpoint with some of its modes edited.

    Args:
      kind: "drop", "keep", "flip", "rotate", "equalize", "symmetric", "antisymmetric" or "unbias", see
        `qkjax.interaction.edit`.
      select: which modes, such as "cosine>0.5 layers=0-3", see `qkjax.interaction.select`.
      key_bias: False removes the key bias of the edited heads, too.
      control: a seed; edits strength-matched random modes in place of the selected ones, see `Edit`.
      exact: give heads as many columns as it takes to hold every edit; big_vision's model has no such heads.

    Returns:
      The edited checkpoint. A warning says what does not fit into the heads, or that a control is idle.

    Raises:
      QkjaxError: an unknown kind, or an invalid selection.

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
    """As `edit`, with its warnings as a list of notes.

    Raises:
      QkjaxError: as `edit`.
    """
    parts = query_key(checkpoint.params)
    modes = decompose(parts.query_kernel, parts.key_kernel)
    requested = Edit(kind, select, key_bias, control)
    plan = resolve(requested, parts, modes, measure(modes))
    columns = wide_columns(checkpoint) if exact else None
    heads = edit_heads(parts, modes, plan.kind, plan.weights, columns, plan.key_bias, plan.heads)
    notes = notes_on(plan, heads, checkpoint.config.head_dim)
    if is_idle_control(requested, plan):
        notes.append(IDLE_CONTROL)
    if exact:
        checkpoint, heads = widened(checkpoint, columns), scaled(heads, checkpoint)
    return replace(checkpoint, params=with_query_key(checkpoint.params, jax.tree.map(np.asarray, heads))), notes


def notes_on(plan: ResolvedEdit, heads: EditedHeads, head_dim: int) -> list[str]:
    """What whoever reads the results of an edit should know."""
    notes, kept = [], np.asarray(heads.retained)
    if kept.min() < 0.9999:
        layer, head = np.unravel_index(kept.argmin(), kept.shape)
        notes.append(
            f"{head_dim} columns hold {kept.mean():.4f} of the edited interactions' squared strength, at least "
            f"{kept.min():.4f} (layer {layer}, head {head}); exact heads are wider"
        )
    if not plan.heads.any():
        notes.append("the selection is empty: nothing is edited")
    return notes


def wide_columns(checkpoint: Checkpoint) -> int:
    """Columns that hold any edit exactly: rank twice as high, and the bias term."""
    return 2 * checkpoint.config.head_dim + 1


def scaled(heads: EditedHeads, checkpoint: Checkpoint) -> EditedHeads:
    """Kernels of wider heads with the factor by which the softmax divides more than it did in the checkpoint's."""
    factor = np.sqrt(heads.query_kernel.shape[-1] / checkpoint.config.head_dim).astype(np.float32)
    return heads._replace(query_kernel=heads.query_kernel * factor, query_bias=heads.query_bias * factor)


def widened(checkpoint: Checkpoint, columns: int) -> Checkpoint:
    """The checkpoint with heads of more columns, 0 for values; its queries and keys have yet to be replaced."""
    params = widened_heads(checkpoint.params, columns)
    return replace(checkpoint, config=replace(checkpoint.config, head_dim=columns), params=params)
