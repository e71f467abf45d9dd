"""The parameters of a constraint whose interaction is nearest to that of given kernels.

Nearest means in the Frobenius norm of M, head by head. It is computed once, in float64 with numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qkjax.train.constraints.record import STRENGTH, Constraint, Head, Parameters
from qkjax.train.constraints.registry import constraint

Kernel = Float[np.ndarray, "embed heads head_dim"]
DEAD = 1e-5
"""A head counts as dead if the norm of its nearest M is at most this share of the given one's."""
SMALL = np.float32(1e-3)
"""Factor of the random parameters that replace those of a dead head."""


def nearest_parameters(name: str, query: Kernel, key: Kernel) -> dict[str, np.ndarray]:
    """Parameters of a constraint whose M is nearest, head by head, to that of given kernels.

    If the nearest M of a head is 0 (such as the repulsive head nearest to a tied one), both factors would stay 0, since
    each is a factor in the gradient of the other. Such a head gets small random parameters: the constraint's `init`
    times 1e-3.

    Args:
      name: name of the constraint, as for `constraint`.
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
