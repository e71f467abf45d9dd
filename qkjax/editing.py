"""A checkpoint whose interactions are edited: a checkpoint like any other."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError, nearest
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.edit import EDITS, Edited, edit
from qkjax.interaction.metrics import Metrics, measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interaction.select import Weights, random_modes, select, strength
from qkjax.vit.tree import Attention, attention, with_attention
from qkjax.weights.load import Checkpoint

KINDS = ("keep", *EDITS)


@dataclass(frozen=True)
class Edit:
    """What is done to a model, in words.

    Attributes:
      kind: one of `KINDS`: those of `interaction.edit`, or "keep", which drops all other modes of the heads that
        the selection's layers and heads are.
      selection: of modes, see `interaction.select`.
      key_bias: keep what the query bias makes of keys; without it, it is taken out of the edited heads.
      control: seed; random modes as strong are edited in place of those selected. Of an edit of whole heads the
        control is to drop random modes that hold as much as it takes away: for the symmetric part the squared
        strength of the antisymmetric one and the other way round, for `unbias` the squared spread of the bias term
        (`interaction.bias`), no more than all.
    """

    kind: str
    selection: str = "all"
    key_bias: bool = True
    control: int | None = None


class Planned(NamedTuple):
    """An edit, worked out for a model's modes: what `interaction.edit.edit` takes.

    Attributes:
      share: of each head's squared strength, how much is edited (or taken away, for edits of whole heads).
    """

    kind: str
    weights: Weights
    key_bias: bool
    share: Float[np.ndarray, "layers heads"]


def planned(wanted: Edit, parts: Attention, modes: Modes, metrics: Metrics) -> Planned:
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
    if kind in ("symmetric", "antisymmetric", "unbias"):
        taken = {"symmetric": 1 - symmetric, "antisymmetric": symmetric, "unbias": _bias_share(parts)}[kind]
        share = np.where(touched, np.clip(np.nan_to_num(taken), 0, 1), 0.0)
        kind = kind if control is None else "drop"
    else:
        share = strength(weights, modes.s)
    if control is not None:
        weights = random_modes(control, share, modes.s)
    return Planned(kind, weights, wanted.key_bias, share)


def _bias_share(parts: Attention) -> Float[np.ndarray, "layers heads"]:
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
    parts = attention(checkpoint.params)
    modes = decompose(*parts[:2])
    plan = planned(Edit(kind, selection, key_bias, control), parts, modes, measure(modes))
    columns = wide_columns(checkpoint) if exact else None
    made = edit(parts, modes, plan.kind, plan.weights, columns, plan.key_bias)
    notes = notes_on(plan, control, made, checkpoint.config.head_dim)
    if exact:
        checkpoint, made = widened(checkpoint, columns), scaled(made, checkpoint)
    return replace(checkpoint, params=with_edited(checkpoint.params, jax.tree.map(np.asarray, made))), notes


def notes_on(plan: Planned, control: int | None, made: Edited, head_dim: int) -> list[str]:
    """What whoever reads the results of an edit should know."""
    notes, kept = [], np.asarray(made.kept)
    if kept.min() < 0.9999:
        layer, head = np.unravel_index(kept.argmin(), kept.shape)
        notes.append(
            f"{head_dim} columns hold {kept.mean():.4f} of the edited interactions' squared strength, at least "
            f"{kept.min():.4f} (layer {layer}, head {head}); exact heads are wider"
        )
    if not plan.share.any():
        notes.append("no mode is chosen: nothing is edited")
    elif control is not None and plan.share[plan.share > 0].min() > 0.9999:
        notes.append("all modes are chosen, so that random ones are the same: the control is the edit itself")
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
