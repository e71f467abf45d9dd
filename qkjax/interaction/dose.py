"""Measures how much an edit changes a head, and takes modes until a given dose is reached.

(Edits are not in the paper.) An edit replaces the interaction M of a head by M'. The dose of an edit is the size of
M' - M divided by the size of M. There are two measures of size:

- "strength": the squared norm ||M' - M||_F^2. It depends on the weights alone.
- "logits": the variance of y_i (M' - M) y_j^T over the keys j, averaged over all queries i and over a set of images.
  Keys and queries are all tokens that take part in attention, with equal weights. The mean over the keys is subtracted
  because the softmax cancels what all keys of a query have in common. The size of M is the variance of the content
  logits y_i M y_j^T, without the bias terms.

With x_n, the amplitude with which an edit changes mode n, the change is sum_n x_n u_n v_n^T, and its size is x^T E x.
The matrix E of a head contains the inner products of the modes. In the measure "strength", the modes are orthonormal,
and E is the identity. In the measure "logits", with a_in = y_i . u_n and b_jn = y_j . v_n - mean_j (y_j . v_n),

    E_nm = mean over images of (sum_i a_in a_im) (sum_j b_jn b_jm) / (N^2 d)

which is a product of two R x R matrices, entry by entry. E is not diagonal: the logits of two modes can correlate, so
the sizes of modes do not add up. Letters: L layers, H heads, R modes of a head, N tokens, d head_dim.
"""

from typing import Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from qkjax.interaction.metrics import Metrics

Match = Literal["logits", "strength"]
"""The measure of doses, and the measure in which controls are matched."""
MATCHES: tuple[str, ...] = get_args(Match)
WHOLE = ("symmetric", "antisymmetric", "unbias")
"""Edits of whole heads, which do not depend on which modes are selected."""
Products = Float[Array | np.ndarray, "layers heads rank rank"]
PerHead = Float[Array | np.ndarray, "layers heads"]
PerMode = Float[Array | np.ndarray, "layers heads rank"]


class Sizes(NamedTuple):
    """The sizes of parts of the interaction of every head, in one measure; see this module.

    Attributes:
      modes: inner products of the terms u_n v_n^T of all modes.
      rotations: inner products of the changes u_n (v_n - u_n)^T that the edit "rotate" makes to modes of strength 1.
      symmetric, antisymmetric: sizes of (M + M^T) / 2 and (M - M^T) / 2.
      key_bias: size of the key bias term w . y_j.
    """

    modes: Products
    rotations: Products
    symmetric: PerHead
    antisymmetric: PerHead
    key_bias: PerHead


def strength_sizes(metrics: Metrics, key_bias: PerHead) -> Sizes:
    """Sizes in the measure "strength".

    Args:
      metrics: measures of the modes.
      key_bias: size of the key bias term as a share of the size of M. The weights alone do not define this share;
        `BiasTerms` assumes normalised tokens with unit variance in all directions.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> kernels = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> metrics = qkjax.measure(qkjax.decompose(*kernels))
      >>> sizes = strength_sizes(metrics, np.zeros((1, 3)))
      >>> bool(np.allclose(sizes.symmetric + sizes.antisymmetric, total_size(metrics.singular_value, sizes), rtol=1e-5))
      True
    """
    s, cosine = (np.nan_to_num(np.asarray(x, np.float64)) for x in (metrics.singular_value, metrics.cosine))
    symmetric, total = np.nan_to_num(np.asarray(metrics.symmetric_share, np.float64)), (s**2).sum(-1)
    one = np.broadcast_to(np.eye(s.shape[-1]), (*s.shape, s.shape[-1]))
    bias = np.nan_to_num(np.asarray(key_bias, np.float64)) * total
    # |v_n - u_n|^2 = 2 (1 - cos_n); the changes are orthogonal because the u_n are
    return Sizes(one, one * (2 * (1 - cosine))[..., None], symmetric * total, (1 - symmetric) * total, bias)


def total_size(s: PerMode, sizes: Sizes) -> Float[np.ndarray, "layers heads"]:
    """The size of M, by which sizes are divided to get doses."""
    return _size(np.asarray(s, np.float64), sizes.modes)


def terms(kind: str, s: PerMode, sizes: Sizes) -> Float[np.ndarray, "layers heads rank rank"]:
    """Inner products of the changes that an edit makes to each mode, if it edits the mode fully.

    Args:
      kind: "drop", "flip" or "rotate". The other edits do not change each mode independently of the other modes.
      s: strengths of the modes.
      sizes: sizes in one measure.
    """
    s = np.asarray(s, np.float64) * (2 if kind == "flip" else 1)
    return np.asarray(sizes.rotations if kind == "rotate" else sizes.modes, np.float64) * s[..., None] * s[..., None, :]


def change(kind: str, weights: PerMode, s: PerMode, sizes: Sizes) -> Float[np.ndarray, "layers heads"]:
    """The size of M' - M in each head; for "unbias", the size of the key bias term.

    Args:
      kind: name of an edit of `qkjax.interaction.edit`.
      weights: weight of the edit for each mode, from 0 to 1.
      s: strengths of the modes.
      sizes: sizes in one measure.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> kernels = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> metrics = qkjax.measure(qkjax.decompose(*kernels))
      >>> sizes, s = strength_sizes(metrics, np.zeros((1, 3))), metrics.singular_value
      >>> flipped = change("flip", np.ones(s.shape), s, sizes)  # M' - M = -2 M
      >>> bool(np.allclose(flipped, 4 * total_size(s, sizes)))
      True
    """
    s, weights = np.asarray(s, np.float64), np.asarray(weights, np.float64)
    if kind in WHOLE:
        taken = {"symmetric": sizes.antisymmetric, "antisymmetric": sizes.symmetric, "unbias": sizes.key_bias}[kind]
        return np.where(weights.any(-1), np.asarray(taken, np.float64), 0)
    if kind == "equalize":
        total = np.maximum(weights.sum(-1, keepdims=True), 1e-9)
        level = np.sqrt((weights * s**2).sum(-1, keepdims=True) / total)
        return _size(np.sqrt(weights) * (level - s), sizes.modes)
    return _size(parts_of(kind, weights), terms(kind, s, sizes))


def parts_of(kind: str, weights: PerMode) -> Float[np.ndarray, "layers heads rank"]:
    """The part of each mode's full change that an edit makes, from 0 to 1, for a weight of `qkjax.interaction.edit`."""
    weights = np.asarray(weights, np.float64)
    return 1 - np.sqrt(1 - weights) if kind == "drop" else np.sqrt(weights)


def weights_of(kind: str, parts: PerMode) -> Float[np.ndarray, "layers heads rank"]:
    """The inverse of `parts_of`, in float32."""
    return (1 - (1 - parts) ** 2 if kind == "drop" else parts**2).astype(np.float32)


def take(
    sort_by: PerMode, mask: Bool[np.ndarray, "layers heads rank"], terms: Products, target: PerHead
) -> Float[np.ndarray, "layers heads rank"]:
    """Takes modes in ascending order of `sort_by` until the size of what is taken reaches a target.

    Of the last mode, only the part is taken with which the size is the target exactly. If the size never reaches the
    target, all modes of the mask are taken.

    Args:
      sort_by: numbers by which the modes are sorted.
      mask: modes that may be taken.
      terms: inner products of the modes; see `terms`.
      target: the size to reach in each head.

    Returns:
      Parts x (layers, heads, rank) from 0 to 1, for which x^T terms x is the target.

    Example:
      >>> import numpy as np
      >>> order, mask = np.array([[[2.0, 0.0, 1.0]]]), np.ones((1, 1, 3), bool)
      >>> take(order, mask, np.diag([4.0, 4.0, 4.0])[None, None], np.array([[5.0]])).tolist()
      [[[0.0, 1.0, 0.5]]]
    """
    order = np.where(mask, np.nan_to_num(np.asarray(sort_by, np.float64)), np.inf).argsort(axis=-1, kind="stable")
    mask = np.take_along_axis(np.asarray(mask), order, -1)
    ordered = np.take_along_axis(np.asarray(terms, np.float64), order[..., None], -2)
    ordered = np.take_along_axis(ordered, order[..., None, :], -1) * mask[..., None] * mask[..., None, :]
    own = np.diagonal(ordered, axis1=-2, axis2=-1)
    cross = np.tril(ordered, -1).sum(-1)  # with all modes that are taken before
    after = (own + 2 * cross).cumsum(-1)
    target = np.asarray(target, np.float64)[..., None]
    reached = after >= target * (1 + 1e-9)  # rounding must not leave out weak modes if the target is the size of all
    number = np.arange(mask.shape[-1])
    last = np.where(reached.any(-1), reached.argmax(-1), mask.shape[-1])[..., None]
    # x^2 own + 2 x cross = missing has one root from 0 to 1, because the size is convex in x and passes the target.
    missing = target - (after - own - 2 * cross)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = missing / (cross + np.sqrt(np.maximum(cross**2 + own * missing, 0)))
    part = np.where(missing > 0, np.clip(np.nan_to_num(part), 0, 1), 0)
    parts = np.where(number < last, 1.0, np.where(number == last, part, 0.0)) * mask
    return np.take_along_axis(parts, order.argsort(axis=-1, kind="stable"), -1)


def random_parts(seed: int, terms: Products, target: PerHead) -> Float[np.ndarray, "layers heads rank"]:
    """Takes random modes until the size of what is taken reaches a target; see `take`.

    Controls edit random modes with the same size as the selected modes.
    """
    order = np.asarray(jax.random.uniform(jax.random.key(seed), np.shape(terms)[:3]))
    return take(order, np.ones(order.shape, bool), terms, target)


def _size(amplitudes: np.ndarray, products: Products) -> Float[np.ndarray, "layers heads"]:
    return np.einsum("lhn,lhnm,lhm->lh", amplitudes, np.asarray(products, np.float64), amplitudes)
