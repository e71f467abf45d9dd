"""Choosing modes: which an edit is applied to, by words; and random ones as strong, as its control."""

import operator
import re

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.metrics import Metrics

Weights = Float[Array | np.ndarray, "layers heads rank"]
"""For each mode how much of it is edited: 0 nothing, 1 all."""

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
MEASURES = ("cosine", "cumulative_strength", "singular_value")
AXES = {"layers": 0, "heads": 1, "modes": 2}
ORDERS = {
    "grouping": ("cosine", -1),
    "contextual": ("cosine", 1),
    "strongest": ("singular_value", -1),
    "weakest": ("singular_value", 1),
}
"""Which modes come first: by what, and whether the lowest (1) or the highest (-1)."""
NUMBER = r"-?\d*\.?\d+(?:e-?\d+)?"


def select(text: str, metrics: Metrics, keep: bool = False) -> Weights:
    """The modes that all terms of a text choose.

    Args:
      text: terms, of which all hold:
        "cosine>0.5" (cosine, cumulative_strength or singular_value with >, >=, < or <=);
        "layers=0-3", "heads=1,4", "modes=0-9", "modes=10-" (numbers and ranges, counted from 0, strongest first);
        "grouping=0.3": of those that the others leave, the modes with the highest cosines, until they hold 0.3 of
        their head's squared strength, the last one in part (see `edit`); "contextual=0.3" the lowest cosines,
        "strongest=0.3" and "weakest=0.3" by singular value;
        "all".
      metrics: of the modes.
      keep: instead all others, in the heads that "layers=" and "heads=" terms choose.

    Returns:
      1 for what is chosen, 0 for what is not, between them for what is in part, (layers, heads, rank).

    Raises:
      QkjaxError: a term that is none, or a number beyond what the model has.
    """
    terms = text.split()
    if not terms:
        raise QkjaxError('a selection is empty; say "all" for all modes')
    cuts = [term for term in terms if re.fullmatch(rf"({'|'.join(ORDERS)})={NUMBER}", term)]
    if len(cuts) > 1:
        raise QkjaxError(f"{' and '.join(map(repr, cuts))} say twice which modes come first: give one of them")
    chosen = np.ones(metrics.cosine.shape, bool)
    for term in terms:
        if term not in cuts:
            chosen &= _term(term, metrics)
    weights = chosen.astype(np.float32)
    for term in cuts:
        weights = weights * _cut(term, chosen, metrics)
    return heads_of(text, metrics)[..., None] - weights if keep else weights


def heads_of(text: str, metrics: Metrics) -> Bool[np.ndarray, "layers heads"]:
    """The heads that the "layers=" and "heads=" terms of a selection choose; without such terms all.

    Raises:
      QkjaxError: a number beyond what the model has.
    """
    terms = [term for term in text.split() if term.startswith(("layers=", "heads="))]
    return np.asarray(select(" ".join(terms) or "all", metrics)).any(-1)


def _cut(term: str, chosen: np.ndarray, metrics: Metrics) -> Weights:
    """How much of each mode a term such as "grouping=0.3" takes out of the chosen."""
    order, share = term.split("=")
    if not 0 <= float(share) <= 1:
        raise QkjaxError(f"{term!r}: a share of the squared strength is from 0 to 1")
    name, sign = ORDERS[order]
    s = np.asarray(metrics.singular_value, np.float64)
    return _first(sign * np.asarray(getattr(metrics, name)), chosen * s**2, float(share) * (s**2).sum(-1))


def _term(term: str, metrics: Metrics) -> np.ndarray:
    shape = metrics.cosine.shape
    if term == "all":
        return np.ones(shape, bool)
    if match := re.fullmatch(rf"({'|'.join(MEASURES)})(>=|<=|>|<)({NUMBER})", term):
        with np.errstate(invalid="ignore"):  # heads without an interaction have no cosines
            return COMPARISONS[match[2]](np.asarray(getattr(metrics, match[1])), float(match[3]))
    if match := re.fullmatch(rf"({'|'.join(AXES)})=(\d+(?:-\d*)?(?:,\d+(?:-\d*)?)*)", term):
        axis = AXES[match[1]]
        if max(map(int, re.findall(r"\d+", match[2]))) >= shape[axis]:
            raise QkjaxError(f"{term!r} chooses beyond the {shape[axis]} {match[1]} that there are, from 0")
        numbers = _numbers(match[2], shape[axis])
        return np.isin(np.arange(shape[axis]), numbers).reshape([-1 if i == axis else 1 for i in range(3)])
    raise QkjaxError(
        f"{term!r} chooses nothing; terms are such as cosine>0.5, cumulative_strength<=0.9, layers=0-3, heads=1,4, "
        f"modes=0-9, modes=10-, {', '.join(f'{name}=0.3' for name in ORDERS)}, all"
    )


def _numbers(text: str, count: int) -> list[int]:
    """Of "0-3,7", or "5-" up to the last."""
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        end = int(last) if last else count - 1 if dash else int(first)
        if end < int(first) < count:
            raise QkjaxError(f"{part!r} runs backwards: give the lower number first")
        found += range(int(first), max(end, int(first)) + 1)
    return found


def strength(weights: Weights, s: Float[Array | np.ndarray, "layers heads rank"]) -> Float[np.ndarray, "layers heads"]:
    """The share of each head's ||M||_F^2 = sum s^2 that an edit is applied to."""
    squares = np.asarray(s, np.float64) ** 2
    return (weights * squares).sum(-1) / np.maximum(squares.sum(-1), np.finfo(np.float64).tiny)


def random_modes(
    seed: int, share: Float[np.ndarray, "layers heads"], s: Float[Array | np.ndarray, "layers heads rank"]
) -> Weights:
    """Random modes that together hold a share (to six places) of each head's squared strength: what an edit of as
    strong modes is to be compared with. Taken whole in a random order, and of the last one as much as is wanted."""
    squares = np.asarray(s, np.float64) ** 2
    order = np.asarray(jax.random.uniform(jax.random.key(seed), squares.shape))
    # Rounded, so that edits as strong as each other have the very same controls.
    return _first(order, squares, np.round(share, 6) * squares.sum(-1))


def _first(
    place: Float[np.ndarray, "layers heads rank"],
    squares: Float[np.ndarray, "layers heads rank"],
    wanted: Float[np.ndarray, "layers heads"],
) -> Weights:
    """How much of each mode is taken, from the lowest place on, until their squares add up to what is wanted."""
    order = place.argsort(axis=-1, kind="stable")
    sorted_squares = np.take_along_axis(squares, order, axis=-1)
    before = np.cumsum(sorted_squares, axis=-1) - sorted_squares
    # A trifle more, or rounding would leave out the weakest modes where all are wanted.
    left = wanted[..., None] * (1 + 1e-9) - before
    parts = np.clip(left, 0, sorted_squares) / np.maximum(sorted_squares, np.finfo(np.float64).tiny)
    taken = np.where(sorted_squares > 0, parts, left > 0)
    return np.take_along_axis(taken, order.argsort(axis=-1, kind="stable"), axis=-1).astype(np.float32)
