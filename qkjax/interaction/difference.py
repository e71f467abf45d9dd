"""Compares the modes of two models with the same architecture, such as a model before and after fine-tuning."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.errors import QkjaxError
from qkjax.interaction.modes import Modes
from qkjax.interaction.svd.jacobi import jacobi_svd
from qkjax.interaction.svd.lapack import by_lapack, one_blas_thread


class Difference(NamedTuple):
    """Compares each head of a second model (M', u', s', v') with the same head of a first model (M, u, s, v).

    Values are NaN for heads whose M is zero.

    Attributes:
      similarity: <M, M'> / (||M|| ||M'||), in [-1, 1]; it is 1 if the interactions are equal up to a positive factor.
      strength_ratio: ||M'||_F / ||M||_F.
      query_angles: cosines of the principal angles between the span of all u and the span of all u',
        largest first. For random subspaces, the mean square of these cosines is rank / embed.
      key_angles: cosines of the principal angles between the span of all v and the span of all v', largest first.
      match: for each mode n of the first model, the index m of the mode of the second model with which it is paired.
        Within a head, the pairing maximises the sum of `match_similarity`.
      match_similarity: (u_n . u'_m) (v_n . v'_m) for each pair, at most 1. The arbitrary signs of the modes cancel.
      match_ratio: s'_m / s_n for each pair.
    """

    similarity: Float[Array, "layers heads"]
    strength_ratio: Float[Array, "layers heads"]
    query_angles: Float[Array, "layers heads rank"]
    key_angles: Float[Array, "layers heads rank"]
    match: Int[np.ndarray, "layers heads rank"]
    match_similarity: Float[np.ndarray, "layers heads rank"]
    match_ratio: Float[np.ndarray, "layers heads rank"]


@jax.jit
def _overlaps(first: Modes, second: Modes):
    queries, keys = (
        jnp.einsum("lhdn,lhdm->lhnm", a, b, precision="highest") for a, b in ((first.u, second.u), (first.v, second.v))
    )
    pairs = queries * keys
    # One stacked call: two independent batched calls can deadlock XLA on CPUs with few cores.
    both = jnp.stack([queries, keys])
    angles = jnp.clip(jnp.linalg.svd(both, compute_uv=False) if by_lapack() else jacobi_svd(both)[1], 0, 1)
    inner = jnp.einsum("lhn,lhnm,lhm->lh", first.s, pairs, second.s, precision="highest")
    norms = [jnp.linalg.norm(modes.s, axis=-1) for modes in (first, second)]
    return inner / (norms[0] * norms[1]), norms[1] / norms[0], angles[0], angles[1], pairs


def difference(first: Modes, second: Modes) -> Difference:
    """Compares the modes of two models, head by head.

    The computation needs no matrix of shape embed x embed, because <M, M'> = sum_nm s_n s'_m (u_n . u'_m) (v_n . v'_m).

    Raises:
      QkjaxError: the models differ in the number of layers, the number of heads, the width or the rank.
    """
    if first.u.shape != second.u.shape:
        raise QkjaxError(
            f"the modes have shapes {first.u.shape} and {second.u.shape}: expected equal shapes; compare models with "
            "the same architecture"
        )
    from scipy.optimize import linear_sum_assignment  # importing this takes a tenth of a second

    with one_blas_thread():
        similarity, ratio, query_angles, key_angles, pairs = jax.block_until_ready(_overlaps(first, second))
    pairs = np.asarray(pairs)
    match = np.stack([linear_sum_assignment(-head)[1] for head in pairs.reshape(-1, *pairs.shape[2:])])
    match = match.reshape(pairs.shape[:3])
    matched = np.take_along_axis(pairs, match[..., None], -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        strengths = np.take_along_axis(np.asarray(second.s), match, -1) / np.asarray(first.s)
    return Difference(similarity, ratio, query_angles, key_angles, match, matched, strengths)
