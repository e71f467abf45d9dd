"""The record of a constraint, with everything that training needs to know about it.

Letters: D embed, H heads, d head_dim. M = Wq Wk^T of a head.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError

Kernel = Float[Array, "embed heads head_dim"]
Parameters = Mapping[str, Array | np.ndarray]
Shape = tuple[int, int, int]  # embed, heads, head_dim
Number = int | float
dot = partial(jnp.einsum, precision="highest")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A kind of parameter.

    Attributes:
      heads_axis: axis of the heads in the array.
      decays: whether weight decay applies to it.
      shrinks: whether small parameters give small kernels; see `train.nearest`.
    """

    heads_axis: int
    decays: bool
    shrinks: bool


KERNEL = Parameter(heads_axis=1, decays=True, shrinks=True)
"""A kernel, (D, H, columns)."""
MIX = Parameter(heads_axis=0, decays=True, shrinks=False)
"""A matrix per head that mixes the columns of a kernel, (H, d, d)."""
STRENGTH = Parameter(heads_axis=0, decays=False, shrinks=True)
"""Factors of the singular values, (H) or (H, d)."""
QUERY, QUERY_AND_KEY = {"query": KERNEL}, {"query": KERNEL, "key": KERNEL}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """The number in parentheses after a constraint's name, such as 8 in "low_rank(8)".

    Attributes:
      meaning: what the number is, for error messages.
      type: int or float.
      low: smallest allowed value.
      high: largest allowed value; None for head_dim.
      example: a valid value.
    """

    meaning: str
    type: type[int] | type[float]
    low: Number
    high: Number | None
    example: Number

    def parse(self, text: str, head_dim: int | None = None) -> Number:
        """Parses the value from text.

        Raises:
          QkjaxError: the text is not a number of this type, or the number is out of range.
        """
        high = head_dim if self.high is None else self.high
        number = "a whole number" if self.type is int else "a number"
        expected = f"{number} of at least {self.low}" if high is None else f"{number} from {self.low} to {high}"
        try:
            value = self.type(text)
        except ValueError as error:
            raise QkjaxError(f"{self.meaning} is {text!r}, expected {expected}") from error
        if not self.low <= value <= (np.inf if high is None else high):
            raise QkjaxError(f"{self.meaning} is {text}, expected {expected}")
        return value


class Head(NamedTuple):
    """The given kernels of one head, in float64.

    Attributes:
      index: index of the head in its layer.
    """

    query: Float[np.ndarray, "embed head_dim"]
    key: Float[np.ndarray, "embed head_dim"]
    index: int


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A parametrisation of the query and key kernels of one layer.

    No field has a default, so an incomplete entry fails when its module is imported. If the constraint has an argument,
    the four functions take its value as their last argument; `bind` fixes it.

    Attributes:
      description: one line, for tables and help.
      parameters: the layer's own parameters, by name.
      init: (random key, shape) -> random parameters. Entries of the kernels have the variance that big_vision's Xavier
        initialisation gives them, if the constraint leaves that open.
      kernels: (parameters, shape) -> query and key kernel, which satisfy the constraint for any parameters.
      nearest: head -> the parameters of this head whose M is nearest to the given one in the Frobenius norm, as numpy
        arrays without the axis of heads.
      factored: whether `kernels` calls LAPACK (QR, SVD). Such layers are computed one after the other, since two
        batched factorisations in one program can deadlock XLA on CPUs with few cores.
      trained: whether the parameters are trained; otherwise they keep their initial values.
      target: () -> the target of the penalty on the layer's weighted cosine; None without a penalty.
      argument: the argument of the name; None if it takes none.
    """

    description: str
    parameters: Mapping[str, Parameter]
    init: Callable[..., dict[str, Array]]
    kernels: Callable[..., tuple[Kernel, Kernel]]
    nearest: Callable[..., dict[str, np.ndarray]]
    factored: bool
    trained: bool
    target: Callable[..., float] | None
    argument: Argument | None

    def __post_init__(self):
        """Raises TypeError if a required field is None, or a function does not accept the documented arguments."""
        optional = ("target", "argument")
        if missing := [f.name for f in fields(self) if f.name not in optional and getattr(self, f.name) is None]:
            raise TypeError(f"the constraint {self.description!r} has no {', '.join(missing)}")
        extra = 0 if self.argument is None else 1
        for name, count in (("init", 2), ("kernels", 2), ("nearest", 1), ("target", 0)):
            if (function := getattr(self, name)) is not None:
                try:
                    inspect.signature(function).bind(*range(count + extra))
                except TypeError as error:
                    raise TypeError(f"{name} of the constraint {self.description!r}: {error}") from error

    def bind(self, value: Number) -> "Constraint":
        """The constraint without an argument that results from fixing the argument's value."""

        def bound(function: Callable) -> Callable:
            return lambda *arguments: function(*arguments, value)

        return replace(
            self,
            init=bound(self.init),
            kernels=bound(self.kernels),
            nearest=bound(self.nearest),
            target=bound(self.target) if self.target else None,
            argument=None,
        )


def xavier(key: Array, shape: Shape, columns: int | None = None) -> Float[Array, "embed heads columns"]:
    """A kernel with `columns` columns (by default d): uniform entries of variance 2 / (D + H d), as in big_vision."""
    embed, heads, head_dim = shape
    bound = np.sqrt(6 / (embed + heads * head_dim))
    return jax.random.uniform(key, (embed, heads, columns or head_dim), minval=-bound, maxval=bound)


def xavier_pair(key: Array, shape: Shape, columns: int | None = None) -> dict[str, Array]:
    """Independent "query" and "key" kernels, see `xavier`."""
    query, other = jax.random.split(key)
    return {"query": xavier(query, shape, columns), "key": xavier(other, shape, columns)}
