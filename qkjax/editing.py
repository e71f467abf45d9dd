"""A checkpoint whose interactions are edited: a checkpoint like any other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from qkjax.errors import QkjaxError, nearest
from qkjax.interaction.edit import EDITS, Edited, edit
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.interaction.select import random_like, select
from qkjax.vit.tree import attention, with_attention
from qkjax.weights.load import Checkpoint


def edited(
    checkpoint: Checkpoint,
    kind: str,
    selection: str = "all",
    *,
    key_bias: bool = True,
    control: int | None = None,
    exact: bool = False,
) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with some of its modes edited, as `interaction.edit` says.

    Args:
      kind: one of `EDITS`: drop, flip, rotate, equalize, symmetric, antisymmetric.
      selection: of modes, see `interaction.select`.
      key_bias: keep what the query bias makes of keys; without it, it is taken out of the edited heads.
      control: edit random modes as strong instead of those selected, drawn by this seed.
      exact: give heads as many columns as it takes to hold everything; big_vision's model has no such heads, ours has.

    Returns:
      The checkpoint, and a note where something did not fit the heads' columns.

    Raises:
      QkjaxError: an unknown kind, or a selection that is none.
    """
    if kind not in EDITS:
        raise QkjaxError(f"there is no edit {kind!r}{nearest(kind, EDITS)}; there are {', '.join(EDITS)}")
    parts = attention(checkpoint.params)
    modes = decompose(*parts[:2])
    weights = select(selection, measure(modes))
    if control is not None:
        weights = random_like(jax.random.key(control), weights, modes.s)
    head_dim = checkpoint.config.head_dim
    columns = 2 * head_dim + 1 if exact else None
    made = edit(parts, modes, kind, jnp.asarray(weights), columns, key_bias)
    kept = np.asarray(made.kept)
    notes = []
    if kept.min() < 0.9999:
        layer, head = np.unravel_index(kept.argmin(), kept.shape)
        notes.append(
            f"{head_dim} columns hold {kept.mean():.4f} of the edited interactions' squared strength, at least "
            f"{kept.min():.4f} (layer {layer}, head {head}); exact heads are wider"
        )
    return (_widened(checkpoint, made) if exact else _with(checkpoint, made)), notes


def _with(checkpoint: Checkpoint, made: Edited) -> Checkpoint:
    parts = {
        "query": {"kernel": made.query_kernel, "bias": made.query_bias},
        "key": {"kernel": made.key_kernel, "bias": made.key_bias},
    }
    params = with_attention(checkpoint.params, jax.tree.map(np.asarray, parts))
    return replace(checkpoint, params=params)


def _widened(checkpoint: Checkpoint, made: Edited) -> Checkpoint:
    """With heads of as many columns as the new kernels have: values get columns of 0, and queries the factor by which
    the softmax divides more than before."""
    was, columns = checkpoint.config.head_dim, made.query_kernel.shape[-1]
    factor = np.sqrt(columns / was)
    made = made._replace(query_kernel=made.query_kernel * factor, query_bias=made.query_bias * factor)
    blocks = dict(checkpoint.params["Transformer"])
    for layer in range(checkpoint.config.depth):
        block = blocks[f"encoderblock_{layer}"]
        own = dict(block["MultiHeadDotProductAttention_0"])
        own["value"] = {name: _padded(leaf, -1, columns) for name, leaf in own["value"].items()}
        own["out"] = {**own["out"], "kernel": _padded(own["out"]["kernel"], 1, columns)}
        blocks[f"encoderblock_{layer}"] = {**block, "MultiHeadDotProductAttention_0": own}
    wide = replace(
        checkpoint,
        config=replace(checkpoint.config, head_dim=columns),
        params={**checkpoint.params, "Transformer": blocks},
    )
    return _with(wide, made)


def _padded(leaf: np.ndarray, axis: int, size: int) -> np.ndarray:
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, size - leaf.shape[axis])
    return np.pad(np.asarray(leaf), widths)
