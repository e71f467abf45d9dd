"""Selects modes by a text such as "cosine>0.5 layers=0-3"."""

import operator
import re

import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.dose import Sizes, take, terms, total_size
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
"""A dict from the name of an order of modes to the measure by which modes are sorted, and 1 or -1: 1 if the lowest
value comes first, -1 if the highest value comes first."""
NUMBER = r"-?\d*\.?\d+(?:e-?\d+)?"


def select(text: str, metrics: Metrics, keep: bool = False, sizes: Sizes | None = None) -> Weights:
    """Selects the modes that satisfy all terms of a text.

    Args:
      text: terms, separated by spaces.
        "cosine>0.5" compares the cosine with 0.5. The measure may also be cumulative_strength or singular_value, and
        the comparison may also be >=, < or <=.
        "layers=0-3", "heads=1,4", "modes=0-9" and "modes=10-" list numbers and ranges, counted from 0. Mode 0 is the
        strongest mode of its head. "grouping=0.3" selects, in each head, the modes with the highest cosines until they
        have 0.3 of the squared strength of the head, or 0.3 of the variance of its logits (see `sizes`). The last of
        these modes is usually only partly selected. Modes that do not satisfy all other terms are skipped. If these
        terms leave too few modes for the share, all of the modes that they leave are selected. "contextual=0.3" does
        the same, but starts with the lowest cosines. "strongest=0.3" starts with the largest singular values, and
        "weakest=0.3" with the smallest singular values. "all" selects all modes.
      metrics: measures of the modes.
      keep: whether to select the complement instead. The complement is all modes that do not satisfy the text, in the
        heads that the terms "layers=" and "heads=" select.
      sizes: sizes in the measure of the shares; see `qkjax.interaction.dose`. If None, the measure is the squared
        strength.

    Returns:
      Weights (layers, heads, rank): 1 for selected modes, 0 for modes that are not selected, and values between 0 and 1
      for partly selected modes. A weight w selects the part sqrt(w) s_n u_n v_n^T of a mode.

    Raises:
      QkjaxError: a term is unknown, or the model has no layer, head or mode with a given number.
    """
    terms = text.split()
    if not terms:
        raise QkjaxError('the selection is empty: expected terms such as "cosine>0.5", or "all" for all modes')
    share_terms = [term for term in terms if re.fullmatch(rf"({'|'.join(ORDERS)})={NUMBER}", term)]
    if len(share_terms) > 1:
        raise QkjaxError(f"{' and '.join(map(repr, share_terms))}: expected at most one such term; remove the others")
    mask = np.ones(metrics.cosine.shape, bool)
    for term in terms:
        if term not in share_terms:
            mask &= _mask(term, metrics)
    weights = mask.astype(np.float32)
    for term in share_terms:
        weights = weights * _share(term, mask, metrics, sizes)
    return heads_of(text, metrics)[..., None] - weights if keep else weights


def heads_of(text: str, metrics: Metrics) -> Bool[np.ndarray, "layers heads"]:
    """The heads that the terms "layers=" and "heads=" of a selection name, or all heads if there are no such terms.

    Raises:
      QkjaxError: the model has no layer or head with a given number.
    """
    terms = [term for term in text.split() if term.startswith(("layers=", "heads="))]
    return np.asarray(select(" ".join(terms) or "all", metrics)).any(-1)


def _share(term: str, mask: np.ndarray, metrics: Metrics, sizes: Sizes | None) -> Weights:
    """Weights of the modes in the mask that a term such as "grouping=0.3" selects."""
    order, share = term.split("=")
    if not 0 <= float(share) <= 1:
        raise QkjaxError(f"{term!r}: expected a share of a head from 0 to 1, such as {order}=0.3")
    name, sign = ORDERS[order]
    s = np.asarray(metrics.singular_value, np.float64)
    products, total = (terms("drop", s, sizes), total_size(s, sizes)) if sizes else _squares(s)
    parts = take(sign * np.asarray(getattr(metrics, name)), mask, products, float(share) * total)
    return (parts**2).astype(np.float32)


def _squares(s: Float[np.ndarray, "layers heads rank"]) -> tuple[np.ndarray, np.ndarray]:
    """The squared strengths of the modes as diagonal matrices, and their sum."""
    return s[..., None] ** 2 * np.eye(s.shape[-1]), (s**2).sum(-1)


def _mask(term: str, metrics: Metrics) -> np.ndarray:
    """Mask of the modes that satisfy a term such as "all", "cosine>0.5" or "layers=0-3"."""
    shape = metrics.cosine.shape
    if term == "all":
        return np.ones(shape, bool)
    if match := re.fullmatch(rf"({'|'.join(MEASURES)})(>=|<=|>|<)({NUMBER})", term):
        with np.errstate(invalid="ignore"):  # heads whose M is zero have no cosines
            return COMPARISONS[match[2]](np.asarray(getattr(metrics, match[1])), float(match[3]))
    if match := re.fullmatch(rf"({'|'.join(AXES)})=(\d+(?:-\d*)?(?:,\d+(?:-\d*)?)*)", term):
        axis = AXES[match[1]]
        if max(map(int, re.findall(r"\d+", match[2]))) >= shape[axis]:
            raise QkjaxError(
                f"{term!r}: expected numbers from 0 to {shape[axis] - 1}, since the model has {shape[axis]} {match[1]}"
            )
        numbers = _numbers(match[2], shape[axis])
        return np.isin(np.arange(shape[axis]), numbers).reshape([-1 if i == axis else 1 for i in range(3)])
    raise QkjaxError(
        f"{term!r} is not a valid term: expected for example 'cosine>0.5', 'cumulative_strength<=0.9', 'layers=0-3', "
        f"'heads=1,4', 'modes=0-9', 'modes=10-', {', '.join(repr(f'{name}=0.3') for name in ORDERS)} or 'all'"
    )


def _numbers(text: str, count: int) -> list[int]:
    """The numbers in a text such as "0-3,7" or "5-". The range "5-" ends at the largest number, count - 1."""
    numbers = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        end = int(last) if last else count - 1 if dash else int(first)
        if end < int(first) < count:
            raise QkjaxError(f"{part!r} is not a valid range: pass the lower number first")
        numbers += range(int(first), max(end, int(first)) + 1)
    return numbers
