"""Selecting modes by a text such as "cosine>0.5 layers=0-3", and at random with matched strength, as a control."""

import operator
import re

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.metrics import Metrics

Weights = Float[Array | np.ndarray, "layers heads rank"]
"""How much of each mode is edited, from 0 (nothing) to 1 (all)."""

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
MEASURES = ("cosine", "cumulative_strength", "singular_value")
AXES = {"layers": 0, "heads": 1, "modes": 2}
ORDERS = {
    "grouping": ("cosine", -1),
    "contextual": ("cosine", 1),
    "strongest": ("singular_value", -1),
    "weakest": ("singular_value", 1),
}
"""Orders of modes: the measure that sorts them, and whether the lowest (1) or the highest (-1) comes first."""
NUMBER = r"-?\d*\.?\d+(?:e-?\d+)?"


def select(text: str, metrics: Metrics, keep: bool = False) -> Weights:
    """The modes that satisfy all terms of a text.

    Args:
      text: terms, separated by spaces:
        "cosine>0.5" compares cosine, cumulative_strength or singular_value by >, >=, < or <=;
        "layers=0-3", "heads=1,4", "modes=0-9", "modes=10-" give numbers and ranges, counted from 0; modes are counted
        from the strongest;
        "grouping=0.3" takes the modes with the highest cosines until they have 0.3 of the squared strength of their
        head, the last one in part (see `edit`); it takes them from the modes that satisfy the other terms;
        "contextual=0.3" takes the lowest cosines, "strongest=0.3" the largest and "weakest=0.3" the smallest singular
        values;
        "all" selects all modes.
      metrics: measures of the modes.
      keep: select the complement: all other modes of the heads that the terms "layers=" and "heads=" select.

    Returns:
      Weights (layers, heads, rank): 1 for selected modes, 0 for others, and values between them for modes that are
      selected in part.

    Raises:
      QkjaxError: an unknown term, or a number that the model does not have.
    """
    terms = text.split()
    if not terms:
        raise QkjaxError('the selection is an empty text: expected terms such as "cosine>0.5", or "all" for all modes')
    share_terms = [term for term in terms if re.fullmatch(rf"({'|'.join(ORDERS)})={NUMBER}", term)]
    if len(share_terms) > 1:
        raise QkjaxError(f"{' and '.join(map(repr, share_terms))} order the modes in different ways: pass one of them")
    mask = np.ones(metrics.cosine.shape, bool)
    for term in terms:
        if term not in share_terms:
            mask &= _mask(term, metrics)
    weights = mask.astype(np.float32)
    for term in share_terms:
        weights = weights * _share(term, mask, metrics)
    return heads_of(text, metrics)[..., None] - weights if keep else weights


def heads_of(text: str, metrics: Metrics) -> Bool[np.ndarray, "layers heads"]:
    """The heads that the terms "layers=" and "heads=" of a selection select; all heads without such terms.

    Raises:
      QkjaxError: a number that the model does not have.
    """
    terms = [term for term in text.split() if term.startswith(("layers=", "heads="))]
    return np.asarray(select(" ".join(terms) or "all", metrics)).any(-1)


def _share(term: str, mask: np.ndarray, metrics: Metrics) -> Weights:
    """Weights of the modes that a term such as "grouping=0.3" takes from those in the mask."""
    order, share = term.split("=")
    if not 0 <= float(share) <= 1:
        raise QkjaxError(f"{term!r}: expected a share of the squared strength from 0 to 1, such as {order}=0.3")
    name, sign = ORDERS[order]
    s = np.asarray(metrics.singular_value, np.float64)
    return _up_to_total(sign * np.asarray(getattr(metrics, name)), mask * s**2, float(share) * (s**2).sum(-1))


def _mask(term: str, metrics: Metrics) -> np.ndarray:
    """The modes that satisfy a term other than a share."""
    shape = metrics.cosine.shape
    if term == "all":
        return np.ones(shape, bool)
    if match := re.fullmatch(rf"({'|'.join(MEASURES)})(>=|<=|>|<)({NUMBER})", term):
        with np.errstate(invalid="ignore"):  # heads without an interaction have no cosines
            return COMPARISONS[match[2]](np.asarray(getattr(metrics, match[1])), float(match[3]))
    if match := re.fullmatch(rf"({'|'.join(AXES)})=(\d+(?:-\d*)?(?:,\d+(?:-\d*)?)*)", term):
        axis = AXES[match[1]]
        if max(map(int, re.findall(r"\d+", match[2]))) >= shape[axis]:
            raise QkjaxError(
                f"{term!r}: expected numbers from 0 to {shape[axis] - 1}, the model has {shape[axis]} {match[1]}"
            )
        numbers = _numbers(match[2], shape[axis])
        return np.isin(np.arange(shape[axis]), numbers).reshape([-1 if i == axis else 1 for i in range(3)])
    raise QkjaxError(
        f"{term!r} is not a valid term: expected one such as 'cosine>0.5', 'cumulative_strength<=0.9', 'layers=0-3', "
        f"'heads=1,4', 'modes=0-9', 'modes=10-', {', '.join(repr(f'{name}=0.3') for name in ORDERS)}, 'all'"
    )


def _numbers(text: str, count: int) -> list[int]:
    """The numbers in "0-3,7"; "5-" goes up to the last number."""
    numbers = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        end = int(last) if last else count - 1 if dash else int(first)
        if end < int(first) < count:
            raise QkjaxError(f"{part!r} is not a valid range: pass the lower number first")
        numbers += range(int(first), max(end, int(first)) + 1)
    return numbers


def strength(weights: Weights, s: Float[Array | np.ndarray, "layers heads rank"]) -> Float[np.ndarray, "layers heads"]:
    """The share of ||M||_F^2 = sum s^2 of each head that the weights select."""
    squares = np.asarray(s, np.float64) ** 2
    return (weights * squares).sum(-1) / np.maximum(squares.sum(-1), np.finfo(np.float64).tiny)


def random_modes(
    seed: int, share: Float[np.ndarray, "layers heads"], s: Float[Array | np.ndarray, "layers heads rank"]
) -> Weights:
    """Random modes that together have the given share of the squared strength of each head.

    They are the control of an edit of modes with the same share. Modes are taken in random order, the last one in part.
    The share is rounded to six decimals.
    """
    squares = np.asarray(s, np.float64) ** 2
    order = np.asarray(jax.random.uniform(jax.random.key(seed), squares.shape))
    # Rounded, so that edits of equal strength have identical controls.
    return _up_to_total(order, squares, np.round(share, 6) * squares.sum(-1))


def _up_to_total(
    sort_by: Float[np.ndarray, "layers heads rank"],
    squares: Float[np.ndarray, "layers heads rank"],
    total: Float[np.ndarray, "layers heads"],
) -> Weights:
    """Weights of the modes that are taken in ascending order of `sort_by` until their squares add up to `total`."""
    order = sort_by.argsort(axis=-1, kind="stable")
    sorted_squares = np.take_along_axis(squares, order, axis=-1)
    before = np.cumsum(sorted_squares, axis=-1) - sorted_squares
    # Slightly increased: otherwise rounding would exclude the weakest modes if the total is that of all modes.
    remaining = total[..., None] * (1 + 1e-9) - before
    parts = np.clip(remaining, 0, sorted_squares) / np.maximum(sorted_squares, np.finfo(np.float64).tiny)
    weights = np.where(sorted_squares > 0, parts, remaining > 0)
    return np.take_along_axis(weights, order.argsort(axis=-1, kind="stable"), axis=-1).astype(np.float32)
