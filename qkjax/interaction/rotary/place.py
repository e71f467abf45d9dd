"""The share of the interaction that depends on position, from Gram matrices of the kernels.

With the columns q_a, q_a' of Wq and k_a, k_a' of Wk in plane a,

    M(delta) = sum_a cos theta_a(delta) C_a + sin theta_a(delta) S_a,
    C_a = q_a k_a^T + q_a' k_a'^T,   S_a = q_a k_a'^T - q_a' k_a^T

For i and j independent and uniform, delta and -delta are equally frequent, so cosines and sines are uncorrelated:

    E ||M(delta)||_F^2 = sum_ab E[cos_a cos_b] <C_a, C_b> + E[sin_a sin_b] <S_a, S_b>
    E[cos_a cos_b], E[sin_a sin_b] = (|m-|^2 +- |m+|^2) / 2,   m+- = mean_p exp(i (theta_a(p) +- theta_b(p)))

and <C_a, C_b>, <S_a, S_b> are sums of products of entries of Wq^T Wq and Wk^T Wk.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.rotary.rotation import Angles, Pairs, by_plane, grid_steps

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]
Moments = Float[np.ndarray, "2 *heads planes planes"]


class PlaceShare(NamedTuple):
    """How much of the interaction of each head depends on the positions of query and key. NaN if M is zero.

    Attributes:
      share: 1 - ||Mbar||_F^2 / E ||M(delta)||_F^2, from 0 (M is the same for all offsets) to 1 (the mean is 0).
      contribution: the part of `share` that each plane contributes, E <M_a - Mbar_a, M - Mbar> / E ||M||_F^2. The
        contributions of all planes add up to `share`; a contribution is negative if a plane counteracts the others.
      within_plane: the share of each plane by itself, 1 - ||Mbar_a||_F^2 / E ||M_a(delta)||_F^2.
      axis: the part of `share` that depends on the offset along one axis alone, E ||E[M | offset along the axis] -
        Mbar||_F^2 / E ||M||_F^2. If each plane rotates along one axis, the axes add up to `share`; otherwise, the rest
        depends on several axes jointly.
    """

    share: Float[Array, "layers heads"]
    contribution: Float[Array, "layers heads planes"]
    within_plane: Float[Array, "layers heads planes"]
    axis: Float[Array, "layers heads axes"]


def _moments(phases: np.ndarray) -> Moments:
    """E[cos_a cos_b] and E[sin_a sin_b] over pairs of positions, from exp(i theta) of shape (..., places, planes)."""
    transposed, places = np.swapaxes(phases, -1, -2), phases.shape[-2]
    minus, plus = (np.abs(x @ phases / places) ** 2 for x in (transposed.conj(), transposed))
    return np.stack([minus + plus, minus - plus]) / 2


def moments(angles: Angles) -> Moments:
    """E[cos theta_a cos theta_b] and E[sin theta_a sin theta_b] of the offsets, for independent, uniform i and j."""
    return _moments(np.exp(1j * np.asarray(angles, np.float64)))


def _without_mean(second: Moments, mean: Float[np.ndarray, "*heads planes"]) -> Moments:
    """Covariances from second moments; the mean of cos theta_a is c_a, and the mean of sin theta_a is 0."""
    return second - np.stack([mean[..., :, None] * mean[..., None, :], np.zeros_like(second[1])])


def covariances(angles: Angles) -> Moments:
    """The covariances of cosines and of sines of the offsets."""
    return _without_mean(moments(angles), _square_of_mean(np.exp(1j * np.asarray(angles, np.float64))))


def _square_of_mean(phases: np.ndarray) -> np.ndarray:
    return np.abs(phases.mean(-2)) ** 2


def axis_covariances(angles: Angles, grid: tuple[int, ...]) -> Float[np.ndarray, "axes 2 *heads planes planes"]:
    """The covariances of E[cos theta_a | offset along one axis] and of E[sin theta_a | ...], for each axis.

    exp(i theta_a) is a product of one factor per axis, and offsets along different axes are independent. The
    expectation over the other axes is therefore the product of their c.
    """
    steps = grid_steps(angles, grid)
    factors = [np.exp(1j * np.arange(n)[:, None] * steps[..., g, None, :]) for g, n in enumerate(grid)]
    c = [_square_of_mean(x) for x in factors]
    result = []
    for g, phases in enumerate(factors):
        others = np.prod([x for h, x in enumerate(c) if h != g], axis=0) * np.ones_like(c[g])
        pairs = others[..., :, None] * others[..., None, :]
        result.append(_without_mean(_moments(phases), c[g]) * pairs)
    return np.stack(result)


def _gram(
    kernel: Float[Array, "terms layers embed heads 2 planes"],
) -> Float[Array, "terms terms layers heads 2 planes 2 planes"]:
    """Products of the columns of all pairs of terms; one matrix product per head, which is fast on CPUs."""
    terms, layers, embed, heads, _, planes = kernel.shape
    by_head = jnp.moveaxis(kernel, 3, 2).reshape(terms, layers, heads, embed, 2 * planes)
    product = jnp.matmul(jnp.swapaxes(by_head, -1, -2)[:, None], by_head[None], precision="highest")
    return product.reshape(terms, terms, layers, heads, 2, planes, 2, planes)


def inner_products(
    query: Float[Array, "terms layers embed heads 2 planes"], key: Float[Array, "terms layers key_embed heads 2 planes"]
) -> Float[Array, "2 layers heads planes planes"]:
    """<C_a, C_b> and <S_a, S_b> of all pairs of planes, from the Gram matrices of both kernels.

    M(delta) may be a sum of several terms Wq R(delta) Wk^T; C_a and S_a are then sums over these terms.
    """
    queries, keys = _gram(query), _gram(key)
    turned = queries[..., ::-1, :, ::-1, :]  # S_a has q_a' in place of q_a, and -q_a in place of q_a'
    sign = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]], queries.dtype).reshape(1, 1, 1, 1, 2, 1, 2, 1)
    return jnp.stack([(queries * keys).sum((0, 1, 4, 6)), (turned * sign * keys).sum((0, 1, 4, 6))])


def scaled_heads(kernel: Kernel) -> Float[Array, "layers embed heads head_dim"]:
    """Divides the kernel of each head by its largest entry, so that products of Gram matrices stay in range."""
    kernel = jnp.asarray(kernel, jnp.float32)
    largest = jnp.abs(kernel).max((1, 3), keepdims=True)
    return kernel / jnp.where(largest > 0, largest, 1)


def for_heads(weights: Float[np.ndarray, "*axes planes planes"]) -> Float[Array, "... layers heads planes planes"]:
    """Moments in float32; if all heads rotate by the same angles, with axes of size 1 for layers and heads."""
    shared = weights.ndim < 5  # ([axes], 2, planes, planes)
    return jnp.asarray(weights[..., None, None, :, :] if shared else weights, jnp.float32)


@jax.jit
def _shares(query, key, second, covariance, axes) -> PlaceShare:
    products = inner_products(query[None], key[None])
    total = (second * products).sum((0, -1, -2))
    by_planes = (covariance * products).sum((0, -1)) / total[..., None]
    diagonal = partial(jnp.diagonal, axis1=-2, axis2=-1)
    within = (diagonal(covariance) * diagonal(products)).sum(0) / (diagonal(second) * diagonal(products)).sum(0)
    by_axis = (axes * products[None]).sum((1, -1, -2)) / total[None]
    return PlaceShare(by_planes.sum(-1), by_planes, within, jnp.moveaxis(by_axis, 0, -1))


def place_share(query: Kernel, key: Kernel, angles: Angles, grid: tuple[int, ...], pairs: Pairs = "half") -> PlaceShare:
    """Computes the share of M(delta) that depends on position, for independent, uniform i and j on a grid.

    Args:
      query, key: kernels before the rotation.
      angles: angles of all positions in the grid, in row-major order.
      grid: number of positions along each axis, such as (rows, columns).
      pairs: see `Pairs`.

    Returns:
      `PlaceShare` in float32. The error is about 1e-6 times (||Wq|| ||Wk||)^2 / E ||M(delta)||_F^2.

    Raises:
      QkjaxError: the angles do not fill the grid or are not linear in the coordinates.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.rotary.rotation import axial_angles
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> angles = axial_angles(np.arange(5), np.arange(5), np.array([0.0]))
      >>> place_share(query, key, angles, (5, 5)).share.tolist()  # an angle of 0 at every position
      [[0.0, 0.0, 0.0]]
    """
    planes = (by_plane(scaled_heads(x), pairs) for x in (query, key))
    return _shares(*planes, *map(for_heads, (moments(angles), covariances(angles), axis_covariances(angles, grid))))
