"""Converts the position embedding of a torch model: determines its rows for special tokens, and its grid."""

from math import isqrt

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.families.facts import Facts, Grid

Reading = tuple[tuple[str, ...], Grid]
"""The special tokens that have rows in the position embedding, and the grid of the other rows."""


def fold_positions(flat: dict[str, np.ndarray], width: int, facts: Facts, notes: list[str]) -> Grid | None:
    """Adds the position embeddings of special tokens to the tokens themselves, so that the model's output is unchanged.

    DeiT's distillation token then becomes a register.

    Returns:
      The grid of the learned position embedding. If there is none, the grid in `facts`.

    Raises:
      QkjaxError: there is no position embedding, or its rows fit several grids and the facts do not determine the grid.
    """
    for name in ("cls", "distillation", "registers"):
        if name in flat:
            flat[name] = _rows(flat[name], width, f"embedding of {name}").reshape(1, -1, width)
    if "registers" in flat and not flat["registers"].size:  # DINOv3 without registers
        del flat["registers"]
    positions = flat.pop("positions", flat.pop("positions/kernel", None))
    grid = facts.grids[0] if facts.grids else None
    if positions is not None:
        _rows(positions, width, "position embedding")
        if positions.ndim == 4:  # (1, rows, columns, width): no rows for special tokens
            grid, prefix = positions.shape[1:3], ()
            if facts.grid_is_given and facts.grids[0] != grid:
                raise QkjaxError(
                    f"the position embedding has {grid[0]} x {grid[1]} positions, which do not match "
                    f"grid={facts.grids[0]}"
                )
            positions = positions.reshape(1, -1, width)
        else:
            positions = positions.reshape(1, -1, width)[:, facts.layout.unused_positions :]
            prefix, grid = _reading(flat, positions.shape[1], facts, notes)
        at = 0
        for name in prefix:  # in float32: half precision would round the sum
            part = positions[:, at : at + flat[name].shape[1]].astype(np.float32)
            flat[name], at = flat[name].astype(np.float32) + part, at + flat[name].shape[1]
        flat["pos_embedding"] = positions[:, at:]
    elif (
        not facts.settings.get("posemb")
        and not facts.settings.get("rotary")
        and not any("relative_position_bias" in name for name in flat)
    ):
        raise QkjaxError(
            "the parameters have no position embedding; it may be fixed or rotary: add the model's config.json, or "
            "pass rotary=qkjax.Rotary(...)"
        )
    if "distillation" in flat:
        flat["registers"] = flat.pop("distillation")
    _split_class_tokens(flat, facts.layout.class_tokens)
    return grid


def _rows(array: np.ndarray, width: int, what: str) -> np.ndarray:
    """The array itself, after a check that its last axis has the size of the embedding.

    Raises:
      QkjaxError: the last axis is not the embedding, so reshaping would mix values.
    """
    if array.shape[-1:] != (width,):
        raise QkjaxError(f"the {what} has shape {array.shape}, expected {width} as its last axis")
    return array


def _split_class_tokens(flat: dict[str, np.ndarray], count: int) -> None:
    """Keeps the first class token, and makes all other class tokens registers.

    Raises:
      QkjaxError: there are more or fewer class tokens than `count`.
    """
    found = flat["cls"].shape[1] if "cls" in flat else 0
    if count > 1 and found != count:
        raise QkjaxError(f"the parameters have {found} class tokens, expected {count} as in config.json")
    if count > 1:
        flat["cls"], flat["registers"] = np.split(flat["cls"], [1], axis=1)


def _reading(flat: dict[str, np.ndarray], rows: int, facts: Facts, notes: list[str]) -> Reading:
    """The special tokens that have rows in the position embedding, and the grid of the other rows.

    The function uses the first grid in `facts.grids` that fits the number of rows. If no grid fits, there must be
    exactly one choice of special tokens for which the other rows form a square grid. A grid that the caller passes must
    fit.
    """
    choices = _prefixes(flat, facts.prefix_positions)
    patches = {prefix: rows - sum(flat[name].shape[1] for name in prefix) for prefix in choices}
    for grid in facts.grids:
        for prefix, count in patches.items():
            if grid[0] * grid[1] == count:
                return prefix, grid
    squares = {prefix: (isqrt(n), isqrt(n)) for prefix, n in patches.items() if n > 0 and isqrt(n) ** 2 == n}
    described = "; ".join(f"{_words(prefix)}: {n} patches" for prefix, n in patches.items())
    if facts.grid_is_given:
        rows_, columns = facts.grids[0]
        raise QkjaxError(
            f"the position embedding has {rows} rows ({described}), which do not match grid={rows_, columns}"
        )
    if len(set(squares.values())) != 1:
        problem = "several square grids" if squares else "no square grid"
        raise QkjaxError(
            f"the position embedding has {rows} rows, which fit {problem} ({described}): pass grid=(rows, columns)"
        )
    prefix, grid = next(iter(squares.items()))
    notes.append(f"assumed that the {rows} rows of the position embedding form a square grid of {grid[0]} x {grid[1]}")
    return prefix, grid


def _prefixes(flat: dict[str, np.ndarray], have_rows: bool | None) -> list[tuple[str, ...]]:
    """The possible sets of special tokens that have rows in the position embedding.

    In timm, either all special tokens have rows or none has; in other libraries, registers have no rows.
    """
    first = tuple(name for name in ("cls", "distillation") if name in flat)
    every = (*first, "registers") if "registers" in flat else first
    choices = {None: [first, (), every], True: [every, first], False: [()]}[have_rows]
    return list(dict.fromkeys(choices))


def _words(prefix: tuple[str, ...]) -> str:
    return f"with {', '.join(prefix)}" if prefix else "without special tokens"
