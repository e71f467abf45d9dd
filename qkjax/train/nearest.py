"""Computes the parameters of a constraint for which M is nearest to the M of given kernels.

The distance is the Frobenius norm of the difference, head by head. The computation is done once, in float64 with numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qkjax.train.constraints.record import STRENGTH, Constraint, Head, Parameters
from qkjax.train.constraints.registry import constraint

Kernel = Float[np.ndarray, "embed heads head_dim"]
DEAD = 1e-5
"""A head counts as dead if ||M'|| is at most this share of ||M||, where M' is the nearest interaction that satisfies
the constraint, and M is the given interaction."""
SMALL = np.float32(1e-3)
"""Factor by which the random parameters of a dead head are multiplied."""


def nearest_parameters(name: str, query: Kernel, key: Kernel) -> dict[str, np.ndarray]:
    """Computes the parameters of a constraint for which M is nearest, head by head, to the M of given kernels.

    The nearest M of a head can be 0, for example if the constraint is "repulsive" and the given kernels are tied. Both
    kernels would then stay 0 in training, because the gradient of each kernel is proportional to the other kernel. Such
    a dead head gets small random parameters, which are 1e-3 times the parameters that the constraint's `init` draws.

    Args:
      name: name of the constraint, such as "tied" or "low_rank(8)".
      query, key: the given kernels, (embed, heads, head_dim).

    Raises:
      QkjaxError: the constraint is unknown, or its argument is out of range.
    """
    own = constraint(name, query.shape[2])
    query, key = (np.asarray(x, np.float64) for x in (query, key))
    heads = [own.nearest(Head(query[:, index], key[:, index], index)) for index in range(query.shape[1])]
    parameters = {
        part: np.stack([head[part] for head in heads], kind.heads_axis).astype(np.float32)
        for part, kind in own.parameters.items()
    }
    return _without_dead_heads(own, parameters, query, key)


def _without_dead_heads(own: Constraint, parameters: Parameters, query: Kernel, key: Kernel) -> dict[str, np.ndarray]:
    if all(kind == STRENGTH for kind in own.parameters.values()):
        return parameters  # M is linear in the strengths, so the gradient at 0 is not 0
    nearest = own.kernels({part: jnp.asarray(x) for part, x in parameters.items()}, query.shape)
    dead = _norms(*nearest) <= DEAD * _norms(query, key)
    result = {}
    for part, drawn in own.init(jax.random.key(0), query.shape).items():
        kind, value = own.parameters[part], parameters[part]
        where = dead.reshape(-1, *(1,) * (value.ndim - kind.heads_axis - 1))
        result[part] = np.where(where, np.asarray(drawn) * (SMALL if kind.shrinks else 1), value)
    return result


def _norms(query, key) -> Float[np.ndarray, "heads"]:
    """The Frobenius norm of M for each head."""
    grams = (np.einsum("dhk,dhm->hkm", x, x) for x in (np.asarray(query, np.float64), np.asarray(key, np.float64)))
    return np.sqrt(np.maximum(np.einsum("hkm,hkm->h", *grams), 0))
