"""A checkpoint whose interactions are edited: a checkpoint like any other."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from qkjax.errors import QkjaxError, nearest
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.edit import EDITS, Edited, edit
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.select import Weights, heads_of, random_modes, select, strength
from qkjax.vit.tree import query_key, with_attention
from qkjax.weights.load import Checkpoint

KINDS = ("keep", *EDITS)
NO_CONTROL = "all modes are dropped, so that random ones are the same: the control is the edit itself"


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


class Planned(NamedTuple):
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


def planned(wanted: Edit, parts: QueryKey, modes: Modes, metrics: Metrics) -> Planned:
    """What is to be done to each mode.

    Raises:
      QkjaxError: an unknown kind, or a selection that is none.
    """
    kind, control = wanted.kind, wanted.control
    if kind not in KINDS:
        raise QkjaxError(f"there is no edit {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}")
    weights = select(wanted.selection, metrics, keep=kind == "keep")
    kind = "drop" if kind == "keep" else kind
    symmetric = np.asarray(metrics.symmetric_share, np.float64)
    touched = weights.any(axis=-1)
    # Heads that are kept whole are edited, too, where their bias goes.
    heads = touched if wanted.key_bias or wanted.kind != "keep" else heads_of(wanted.selection, metrics)
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
    return Planned(kind, weights, wanted.key_bias, share, heads)


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


def is_no_control(wanted: Edit, plan: Planned) -> bool:
    """Whether a control is the edit itself: random ones of all modes of all heads that are dropped."""
    if wanted.control is None or wanted.kind not in ("drop", "keep") or not plan.share.any():
        return False
    return bool(plan.share[plan.share > 0].min() > 0.9999)


def _bias_share(parts: QueryKey) -> Float[np.ndarray, "layers heads"]:
    """The squared spread of w . y_j in units of that of y_i M y_j."""
    terms = bias_terms(parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.asarray(terms.key_spread, np.float64) / np.asarray(terms.interaction_spread)) ** 2


def edited(
    checkpoint: Checkpoint,
    kind: str,
    selection: str = "all",
    *,
    key_bias: bool = True,
    control: int | None = None,
    exact: bool = False,
) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with some of its modes edited, as `Edit` says.

    Args:
      exact: give heads as many columns as it takes to hold everything; big_vision's model has no such heads, ours has.

    Returns:
      The checkpoint, and notes: where something did not fit the heads' columns, or a control is no control.

    Raises:
      QkjaxError: an unknown kind, or a selection that is none.
    """
    parts = query_key(checkpoint.params)
    modes = decompose(*parts[:2])
    wanted = Edit(kind, selection, key_bias, control)
    plan = planned(wanted, parts, modes, measure(modes))
    columns = wide_columns(checkpoint) if exact else None
    made = edit(parts, modes, plan.kind, plan.weights, columns, plan.key_bias, plan.heads)
    notes = notes_on(plan, made, checkpoint.config.head_dim)
    if is_no_control(wanted, plan):
        notes.append(NO_CONTROL)
    if exact:
        checkpoint, made = widened(checkpoint, columns), scaled(made, checkpoint)
    return replace(checkpoint, params=with_edited(checkpoint.params, jax.tree.map(np.asarray, made))), notes


def notes_on(plan: Planned, made: Edited, head_dim: int) -> list[str]:
    """What whoever reads the results of an edit should know."""
    notes, kept = [], np.asarray(made.kept)
    if kept.min() < 0.9999:
        layer, head = np.unravel_index(kept.argmin(), kept.shape)
        notes.append(
            f"{head_dim} columns hold {kept.mean():.4f} of the edited interactions' squared strength, at least "
            f"{kept.min():.4f} (layer {layer}, head {head}); exact heads are wider"
        )
    if not plan.heads.any():
        notes.append("no mode is chosen: nothing is edited")
    return notes


def with_edited(params: dict, made: Edited) -> dict:
    """The parameter tree with the edited kernels and biases; may be traced."""
    parts = {
        "query": {"kernel": made.query_kernel, "bias": made.query_bias},
        "key": {"kernel": made.key_kernel, "bias": made.key_bias},
    }
    return with_attention(params, parts)


def wide_columns(checkpoint: Checkpoint) -> int:
    """Columns that hold any edit exactly: rank twice as high, and the bias term."""
    return 2 * checkpoint.config.head_dim + 1


def scaled(made: Edited, checkpoint: Checkpoint) -> Edited:
    """Kernels of wider heads with the factor by which the softmax divides more than it did in the checkpoint's."""
    factor = np.sqrt(made.query_kernel.shape[-1] / checkpoint.config.head_dim).astype(np.float32)
    return made._replace(query_kernel=made.query_kernel * factor, query_bias=made.query_bias * factor)


def widened(checkpoint: Checkpoint, columns: int) -> Checkpoint:
    """With heads of more columns: values get columns of 0. Queries and keys are as they were, and do not fit: they are
    to be put in their place."""
    blocks = dict(checkpoint.params["Transformer"])
    for layer in range(checkpoint.config.depth):
        block = blocks[f"encoderblock_{layer}"]
        own = dict(block["MultiHeadDotProductAttention_0"])
        own["value"] = {name: _padded(leaf, -1, columns) for name, leaf in own["value"].items()}
        own["out"] = {**own["out"], "kernel": _padded(own["out"]["kernel"], 1, columns)}
        blocks[f"encoderblock_{layer}"] = {**block, "MultiHeadDotProductAttention_0": own}
    return replace(
        checkpoint,
        config=replace(checkpoint.config, head_dim=columns),
        params={**checkpoint.params, "Transformer": blocks},
    )


def _padded(leaf: np.ndarray, axis: int, size: int) -> np.ndarray:
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, size - leaf.shape[axis])
    return np.pad(np.asarray(leaf), widths)
