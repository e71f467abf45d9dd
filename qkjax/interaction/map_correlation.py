"""The map correlation: the cosine of a mode in the metric of the tokens' covariance.

The cosine u_n . v_n of a mode depends on weights alone. It is the correlation of the mode's query map y . u_n and key
map y . v_n for tokens whose covariance is the identity. For the covariance S of the tokens of a model,

    corr_n = u_n S v_n / sqrt(u_n S u_n  v_n S v_n)

is the correlation of the two maps over tokens: positive if the tokens that match as queries also match as keys. The
weight of a mode in its head is s_n sqrt(u_n S u_n v_n S v_n), the size of its term in the logits. The map correlation
of a head is therefore tr(M^T S) / sum_n s_n sqrt(u_n S u_n v_n S v_n), where the weighted cosine is tr(M) / sum_n s_n.

All functions compute in float64 on the host.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.modes import Modes

Covariance = Float[Array | np.ndarray, "layers embed embed"]


class MapCorrelation(NamedTuple):
    """The map correlation of all modes and heads. It is NaN for modes and heads whose maps do not vary.

    Attributes:
      mode: corr_n.
      strength: s_n sqrt(u_n S u_n v_n S v_n), the weight of the mode in its head.
      head: mean of corr_n over the modes of a head, weighted by `strength`.
      null: half widths of the 95% interval of `head`, and of the mean over the heads of a layer, for random kernels.
    """

    mode: Float[np.ndarray, "layers heads rank"]
    strength: Float[np.ndarray, "layers heads rank"]
    head: Float[np.ndarray, "layers heads"]
    null: Float[np.ndarray, "2 layers"]


def map_correlation(modes: Modes, covariance: Covariance) -> MapCorrelation:
    """Computes the map correlation of all modes and heads.

    Args:
      modes: modes of the interaction that acts on the tokens of which `covariance` is the covariance: the plain frame
        for the output of the LayerNorm.
      covariance: covariance S of the tokens of each layer, or of a part of the tokens, such as their content.

    Raises:
      QkjaxError: the shapes of modes and covariances do not match.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> from qkjax.interaction.map_correlation import map_correlation
      >>> modes = qkjax.decompose(*np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4)))
      >>> result = map_correlation(modes, np.eye(12)[None])  # uncorrelated tokens: the cosine
      >>> bool(np.allclose(result.head, qkjax.measure(modes).weighted_cosine, atol=1e-6))
      True
    """
    query, key, both = map_moments(modes, covariance)
    size = np.sqrt(query * key)
    s = np.asarray(modes.s, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mode = np.clip(both / size, -1, 1)
        head = (s * both).sum(-1) / (s * size).sum(-1)
    return MapCorrelation(mode, s * size, head, _null(covariance, *s.shape[1:]))


def map_moments(modes: Modes, covariance: Covariance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The variances u S u of query maps, the variances v S v of key maps, and the covariances u S v.

    Returns:
      Three arrays of shape (layers, heads, rank).

    Raises:
      QkjaxError: the shapes of modes and covariances do not match.
    """
    layers, _, embed, _ = np.shape(modes.u)
    if np.shape(covariance) != (layers, embed, embed):
        raise QkjaxError(
            f"covariance has shape {np.shape(covariance)}: expected (layers, embed, embed) = {(layers, embed, embed)}, "
            "as in the modes"
        )
    query, key, both = (np.zeros(np.shape(modes.s)) for _ in range(3))
    for layer in range(layers):  # one layer at a time, which needs less memory
        own = np.asarray(covariance[layer], np.float64)
        u, v = (np.asarray(x[layer], np.float64) for x in (modes.u, modes.v))
        towards_query, towards_key = own @ u, own @ v
        query[layer], key[layer] = (u * towards_query).sum(1), (v * towards_key).sum(1)
        both[layer] = (u * towards_key).sum(1)
    return np.maximum(query, 0), np.maximum(key, 0), both  # rounding may make a variance negative


def map_shares(
    modes: Modes,
    mean: Float[Array | np.ndarray, "layers embed"],
    position: Covariance,
    content: Covariance,
) -> tuple[Float[np.ndarray, "layers heads rank 3"], Float[np.ndarray, "layers heads rank 2"]]:
    """The shares of mean, position and content in the query map, and of position and content in the key map.

    For a query and a key of two independent images and places, the mode's term s (y_i . u) (y_j . v), centred over
    keys, has the variance s^2 E[(y_i . u)^2] Var[y_j . v]. Both factors are sums over the parts of the token, so the
    share of each pair of parts is the product of a query share and a key share.

    Args:
      modes: as for `map_correlation`.
      mean: mean m of the tokens.
      position, content: covariances of the position factor and of the content.

    Returns:
      Shares that add up to 1 over the last axis; NaN if a map is 0.
    """
    u = np.asarray(modes.u, np.float64)
    offset = np.einsum("lhdr,ld->lhr", u, np.asarray(mean, np.float64)) ** 2
    by_part = [map_moments(modes, part) for part in (position, content)]
    query = np.stack([offset, *(part[0] for part in by_part)], -1)
    key = np.stack([part[1] for part in by_part], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return query / query.sum(-1, keepdims=True), key / key.sum(-1, keepdims=True)


def _null(covariance: Covariance, heads: int, rank: int) -> Float[np.ndarray, "2 layers"]:
    """Half widths of the 95% intervals for kernels with independent Gaussian entries.

    The numerator tr(M^T S) then has mean 0 and variance rank tr(S^2), in units in which the denominator is about
    rank tr(S). The interval is wider for tokens that vary along few directions only.
    """
    s = np.asarray(covariance, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = np.sqrt((s**2).sum((1, 2)) / rank) / np.trace(s, axis1=1, axis2=2)
    return 1.959964 * np.stack([deviation, deviation / np.sqrt(heads)])
