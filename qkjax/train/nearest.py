"""Parameters of a constraint for given kernels: the nearest interaction that satisfies it.

Nearest in the Frobenius norm of M, head by head, in float64 with numpy, since it is computed once.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qkjax.train.constraints.record import STRENGTH, Constraint, Head, Parameters
from qkjax.train.constraints.registry import constraint

Kernel = Float[np.ndarray, "embed heads head_dim"]
DEAD = 1e-5
"""A head whose nearest M has less than this share of the given one's norm counts as 0."""
SMALL = np.float32(1e-3)
"""Factor of the parameters that replace those of such a head."""


def nearest_parameters(name: str, query: Kernel, key: Kernel) -> dict[str, np.ndarray]:
    """Parameters of a constraint whose M is nearest, head by head, to that of given kernels.

    If a head's nearest M is 0 (a repulsive head nearest to a tied one), its factors would be 0 and stay 0, since each
    is in the gradient of the other. Such a head gets small random parameters: the constraint's `init` times 1e-3.

    Args:
      name: of the constraint, as `constraint` takes it.
      query, key: the given kernels, (embed, heads, head_dim).

    Raises:
      QkjaxError: an unknown constraint, or an argument out of range.
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
        return parameters  # M is linear in them: a strength of 0 has a gradient
    nearest = own.kernels({part: jnp.asarray(x) for part, x in parameters.items()}, query.shape)
    dead = _norms(*nearest) <= DEAD * _norms(query, key)
    result = {}
    for part, drawn in own.init(jax.random.key(0), query.shape).items():
        kind, value = own.parameters[part], parameters[part]
        where = dead.reshape(-1, *(1,) * (value.ndim - kind.heads_axis - 1))
        result[part] = np.where(where, np.asarray(drawn) * (SMALL if kind.shrinks else 1), value)
    return result


def _norms(query, key) -> Float[np.ndarray, "heads"]:
    """||M||_F of each head."""
    grams = (np.einsum("dhk,dhm->hkm", x, x) for x in (np.asarray(query, np.float64), np.asarray(key, np.float64)))
    return np.sqrt(np.maximum(np.einsum("hkm,hkm->h", *grams), 0))
