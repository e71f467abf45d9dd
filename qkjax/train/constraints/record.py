"""The dataclass `Constraint`, which contains everything that training needs to know about a constraint.

Letters: D embed, H heads, d head_dim, and M = Wq Wk^T of a head.
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
    """A kind of parameter that a constraint may have.

    Attributes:
      heads_axis: axis of the heads in the parameter array.
      decays: whether weight decay applies to the parameter.
      shrinks: whether the kernels are small if the parameter is small; see `train.nearest`.
    """

    heads_axis: int
    decays: bool
    shrinks: bool


KERNEL = Parameter(heads_axis=1, decays=True, shrinks=True)
"""Kind of parameter: a kernel of shape (D, H, columns)."""
MIX = Parameter(heads_axis=0, decays=True, shrinks=False)
"""Kind of parameter: one matrix per head, shape (H, d, d), that mixes the columns of a kernel."""
STRENGTH = Parameter(heads_axis=0, decays=False, shrinks=True)
"""Kind of parameter: factors of the singular values, shape (H) or (H, d)."""
QUERY, QUERY_AND_KEY = {"query": KERNEL}, {"query": KERNEL, "key": KERNEL}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """The number in parentheses after a constraint's name, such as 8 in "low_rank(8)".

    Attributes:
      meaning: description of the number, for error messages.
      type: type of the number, int or float.
      low: smallest allowed value.
      high: largest allowed value. If None, the largest allowed value is head_dim.
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
            raise QkjaxError(f"{self.meaning} is {text!r}: expected {expected}") from error
        if not self.low <= value <= (np.inf if high is None else high):
            raise QkjaxError(f"{self.meaning} is {text}: expected {expected}")
        return value


class Head(NamedTuple):
    """The kernels of one head in float64. `Constraint.nearest` finds the constrained kernels that are nearest to them.

    Attributes:
      query, key: query and key kernel of the head.
      index: index of the head in its layer.
    """

    query: Float[np.ndarray, "embed head_dim"]
    key: Float[np.ndarray, "embed head_dim"]
    index: int


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A parametrisation of the query and key kernels of one layer.

    No field has a default, so an incomplete constraint fails when its module is imported. If the constraint has an
    argument, such as 8 in "low_rank(8)", the functions `init`, `kernels`, `nearest` and `target` take the value of this
    argument as their last argument. The method `bind` fixes the value.

    Attributes:
      description: a one-line description, for tables and help.
      parameters: a dict from the name of each parameter of the layer to its kind.
      init: function that takes a random key and a shape, and returns random parameters. The entries of the kernels have
        the variance of big_vision's Xavier initialisation, unless the constraint fixes the variance.
      kernels: function that takes parameters and a shape, and returns the query and the key kernel. The kernels satisfy
        the constraint for any parameters.
      nearest: function that takes a `Head`, and returns the parameters for which M is nearest, in the Frobenius norm,
        to the M of this head. The parameters are numpy arrays without the axis of heads.
      factored: whether `kernels` calls LAPACK (QR, SVD). Layers with such constraints are computed one after the other,
        because two batched factorisations in one program can deadlock XLA on CPUs with few cores.
      trained: whether the parameters are trained. If False, the parameters keep their initial values.
      target: function without arguments that returns the target of the penalty on the layer's weighted cosine; None if
        there is no penalty.
      argument: the argument in the constraint's name; None if the name has no argument.
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
        """Raises TypeError if a required field is None, or if a function does not accept the documented arguments."""
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
        """Returns the constraint with a fixed value of its argument. The result takes no argument."""

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
    """Draws a random kernel with `columns` columns (by default d), as in big_vision.

    The entries are uniformly distributed with variance 2 / (D + H d).
    """
    embed, heads, head_dim = shape
    bound = np.sqrt(6 / (embed + heads * head_dim))
    return jax.random.uniform(key, (embed, heads, columns or head_dim), minval=-bound, maxval=bound)


def xavier_pair(key: Array, shape: Shape, columns: int | None = None) -> dict[str, Array]:
    """Draws independent random "query" and "key" kernels with `xavier`."""
    query, other = jax.random.split(key)
    return {"query": xavier(query, shape, columns), "key": xavier(other, shape, columns)}
