"""Contrasts queries and keys on the same object with those on different objects (arXiv 2602.04752 for language).

Letters: N patches, H heads, d head_dim, R modes.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

einsum = partial(jnp.einsum, precision="highest")


def contrastive_covariance(
    query: Float[Array, "N H d"], key: Float[Array, "N H d"], objects: Float[Array, "objects N"]
) -> Float[Array, "H d d"]:
    """The contrastive covariance E[q_i k_j^T | same object] - E[q_i k_j^T | different objects] of one image.

    Both means are over pairs of different patches. The weight of a pair in the first mean is the sum over objects of
    the shares of both patches that the object covers, sum_o m_oi m_oj; the weight in the second mean is the same sum
    over pairs of different objects. Parts of patches that no object covers have no weight. The trace of the result,
    divided by sqrt(d), is the mean logit between patches of the same object minus that between different objects.

    Args:
      query, key: queries and keys of the patches.
      objects: share m of each patch that each object covers. At least two objects must cover patches.

    Example:
      >>> import jax.numpy as jnp
      >>> tokens = jnp.array([[[1.0, 0]], [[1, 0]], [[0, 1]], [[0, 1]]])  # two patches on each of two objects
      >>> contrastive_covariance(tokens, tokens, jnp.kron(jnp.eye(2), jnp.ones((1, 2)))).tolist()
      [[[0.5, -0.5], [-0.5, 0.5]]]
    """
    own, covered = (objects**2).sum(0), objects.sum(0)
    sums = [einsum("on,nhd->ohd", objects, x) for x in (query, key)]
    totals = [einsum("n,nhd->hd", covered, x) for x in (query, key)]
    same = einsum("ohd,ohe->hde", *sums) - einsum("n,nhd,nhe->hde", own, query, key)
    every = einsum("hd,he->hde", *totals) - einsum("n,nhd,nhe->hde", covered**2, query, key)
    same_weight = (objects.sum(1) ** 2).sum() - own.sum()
    every_weight = covered.sum() ** 2 - (covered**2).sum()
    return same / same_weight - (every - same) / (every_weight - same_weight)


class Contrast(NamedTuple):
    """How the contrastive covariance C of a head relates to the modes of its interaction Wq Wk^T.

    Attributes:
      singular_value: singular values of C.
      mode_contrast: the part of the mean logit difference tr(C) / sqrt(d) between same and different objects that each
        mode contributes; the parts of all modes of a head add up to it.
      query_overlap, key_overlap: for r = 1, ..., R, the mean squared cosine between the first r left (right) singular
        vectors of C, and the space of the queries (keys) of the first r modes.
      chance: r / d, the mean overlap of random spaces (exact).
    """

    singular_value: Float[np.ndarray, "*heads d"]
    mode_contrast: Float[np.ndarray, "*heads R"]
    query_overlap: Float[np.ndarray, "*heads R"]
    key_overlap: Float[np.ndarray, "*heads R"]
    chance: Float[np.ndarray, "R"]


def contrast_of_modes(
    covariance: Float[np.ndarray, "*heads d d"],
    query_image: Float[np.ndarray, "*heads d R"],
    key_image: Float[np.ndarray, "*heads d R"],
    strength: Float[np.ndarray, "*heads R"],
) -> Contrast:
    """Relates the contrastive covariances of heads to their modes, in float64.

    Mode n reads q . a_n from a query and k . b_n from a key, where s_n a_n = Wk^T v_n and s_n b_n = Wq^T u_n. Since
    sum_n s_n a_n b_n^T is the identity, tr(C) = sum_n s_n a_n^T C b_n.

    Args:
      covariance: C.
      query_image: Wq^T u_n, the query of a token u_n, for each mode.
      key_image: Wk^T v_n, the key of a token v_n.
      strength: s_n, all above 0.

    Example:
      >>> import numpy as np
      >>> covariance = np.diag([3.0, 1.0])
      >>> contrast = contrast_of_modes(covariance, np.eye(2), np.eye(2), np.ones(2))
      >>> contrast.mode_contrast.round(3).tolist(), contrast.query_overlap.round(3).tolist()
      ([2.121, 0.707], [1.0, 1.0])
    """
    covariance, query_image, key_image, strength = (
        np.asarray(x, np.float64) for x in (covariance, query_image, key_image, strength)
    )
    head_dim, modes = query_image.shape[-2:]
    left, s, right = np.linalg.svd(covariance)
    terms = np.einsum("...dn,...de,...en->...n", key_image, covariance, query_image) / strength
    bases = [np.linalg.qr(x)[0] for x in (query_image, key_image)]  # the first r columns span the first r modes
    overlaps = [_overlaps(x, basis) for x, basis in zip((left, np.swapaxes(right, -1, -2)), bases, strict=True)]
    return Contrast(s, terms / np.sqrt(head_dim), *overlaps, np.arange(1, modes + 1) / head_dim)


def _overlaps(vectors: Float[np.ndarray, "*heads d d"], basis: Float[np.ndarray, "*heads d R"]):
    """sum_nm (x_n . b_m)^2 / r over n, m <= r, for r = 1, ..., R."""
    count = basis.shape[-1]
    squares = (np.swapaxes(vectors[..., :count], -1, -2) @ basis) ** 2
    blocks = np.cumsum(np.cumsum(squares, -1), -2)
    return np.diagonal(blocks, axis1=-2, axis2=-1) / np.arange(1, count + 1)
