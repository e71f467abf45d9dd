"""Choosing modes: which an edit is applied to, by words; and random ones as strong, as its control."""

import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.metrics import Metrics

Weights = Float[Array | np.ndarray, "layers heads rank"]
"""For each mode how much of it is edited: 0 nothing, 1 all."""

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
MEASURES = ("cosine", "cumulative_strength", "singular_value")
AXES = {"layers": 0, "heads": 1, "modes": 2}


def select(text: str, metrics: Metrics) -> Weights:
    """The modes that all terms of a text choose.

    Args:
      text: terms such as "cosine>0.5" (cosine, cumulative_strength or singular_value with >, >=, < or <=),
        "layers=0-3", "heads=1,4" and "modes=0-9" (numbers and ranges, counted from 0, strongest first), or "all".
      metrics: of the modes.

    Returns:
      1 for what is chosen, else 0, (layers, heads, rank).

    Raises:
      QkjaxError: a term that is none, or a number beyond what the model has.
    """
    chosen = np.ones(metrics.cosine.shape, bool)
    for term in text.split():
        chosen &= _term(term, metrics)
    if not text.split():
        raise QkjaxError('a selection is empty; say "all" for all modes')
    return chosen.astype(np.float32)


def _term(term: str, metrics: Metrics) -> np.ndarray:
    shape = metrics.cosine.shape
    if term == "all":
        return np.ones(shape, bool)
    if match := re.fullmatch(rf"({'|'.join(MEASURES)})(>=|<=|>|<)(-?\d*\.?\d+)", term):
        with np.errstate(invalid="ignore"):  # heads without an interaction have no cosines
            return COMPARISONS[match[2]](np.asarray(getattr(metrics, match[1])), float(match[3]))
    if match := re.fullmatch(rf"({'|'.join(AXES)})=(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)", term):
        axis = AXES[match[1]]
        numbers = _numbers(match[2])
        if max(numbers) >= shape[axis]:
            raise QkjaxError(f"{term!r} chooses beyond the {shape[axis]} {match[1]} that there are, from 0")
        return np.isin(np.arange(shape[axis]), numbers).reshape([-1 if i == axis else 1 for i in range(3)])
    raise QkjaxError(
        f"{term!r} chooses nothing; terms are such as cosine>0.5, cumulative_strength<=0.9, layers=0-3, heads=1,4, "
        "modes=0-9, all"
    )


def _numbers(text: str) -> list[int]:
    """Of "0-3,7"."""
    ends = ([int(n) for n in part.split("-")] for part in text.split(","))
    return [number for first, *last in ends for number in range(first, (last or [first])[0] + 1)]


def strength(weights: Weights, s: Float[Array | np.ndarray, "layers heads rank"]) -> Float[Array, "layers heads"]:
    """The share of each head's ||M||_F^2 = sum s^2 that an edit is applied to."""
    squares = jnp.asarray(s) ** 2
    return (weights * squares).sum(-1) / jnp.maximum(squares.sum(-1), jnp.finfo(squares.dtype).tiny)


def random_like(key: jax.Array, weights: Weights, s: Float[Array | np.ndarray, "layers heads rank"]) -> Weights:
    """Random modes of each head that are together as strong (sum of s^2) as those chosen: the control of an edit.

    Modes are taken whole in a random order, and of the last one as much as is still wanted.
    """
    squares = jnp.asarray(s) ** 2
    order = jax.random.uniform(key, squares.shape).argsort(axis=-1)
    shuffled = jnp.take_along_axis(squares, order, axis=-1)
    before = jnp.cumsum(shuffled, axis=-1) - shuffled
    wanted = (weights * squares).sum(axis=-1, keepdims=True)
    taken = jnp.clip((wanted - before) / jnp.maximum(shuffled, jnp.finfo(squares.dtype).tiny), 0.0, 1.0)
    return jnp.take_along_axis(taken, order.argsort(axis=-1), axis=-1)
