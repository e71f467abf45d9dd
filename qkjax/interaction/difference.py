"""How the modes of two models of one architecture differ: an original and a fine-tuned or retrained one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.errors import QkjaxError
from qkjax.interaction.modes import Modes
from qkjax.interaction.svd.lapack import one_blas_thread


class Difference(NamedTuple):
    """Head by head, the second model against the first. Heads whose M is zero have NaN.

    Attributes:
      similarity: <M, M'> / (||M|| ||M'||), in [-1, 1]; 1 for the same interaction up to strength.
      strength_ratio: ||M'||_F / ||M||_F.
      query_angles: cosines of the principal angles between the spans of all u and all u', largest
        first; `key_angles` those of v. Their mean square is rank / embed for random spaces.
      match: for each mode of the first model the mode of the second that is paired with it: the
        pairing of all modes of a head that makes the sum of similarities largest.
      match_similarity: (u_n . u'_m) (v_n . v'_m) of the pair, at best 1; signs cancel.
      match_ratio: s'_m / s_n of the pair.
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
    # One stacked call: two independent batched ones can deadlock XLA on CPUs with few cores.
    angles = jnp.clip(jnp.linalg.svd(jnp.stack([queries, keys]), compute_uv=False), 0, 1)
    inner = jnp.einsum("lhn,lhnm,lhm->lh", first.s, pairs, second.s, precision="highest")
    norms = [jnp.linalg.norm(modes.s, axis=-1) for modes in (first, second)]
    return inner / (norms[0] * norms[1]), norms[1] / norms[0], angles[0], angles[1], pairs


def difference(first: Modes, second: Modes) -> Difference:
    """Compares the modes of two models, head by head.

    <M, M'> = sum_nm s_n s'_m (u_n . u'_m) (v_n . v'_m), so no embed x embed matrix is formed.

    Raises:
      QkjaxError: the models differ in layers, heads, width or rank.
    """
    if first.u.shape != second.u.shape:
        raise QkjaxError(
            f"modes can be compared between models of one architecture; shapes are {first.u.shape} and {second.u.shape}"
        )
    from scipy.optimize import linear_sum_assignment  # takes a tenth of a second to load

    with one_blas_thread():
        similarity, ratio, query_angles, key_angles, pairs = jax.block_until_ready(_overlaps(first, second))
    pairs = np.asarray(pairs)
    match = np.stack([linear_sum_assignment(-head)[1] for head in pairs.reshape(-1, *pairs.shape[2:])])
    match = match.reshape(pairs.shape[:3])
    matched = np.take_along_axis(pairs, match[..., None], -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        strengths = np.take_along_axis(np.asarray(second.s), match, -1) / np.asarray(first.s)
    return Difference(similarity, ratio, query_angles, key_angles, match, matched, strengths)
