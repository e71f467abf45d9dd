"""Symmetry and directionality of M, as Saponati et al. define them (arXiv 2502.10927), for comparison with their work.

    symmetry score = (||S||_F^2 - ||N||_F^2) / ||M||_F^2    with S = (M + M^T) / 2 and N = (M - M^T) / 2
    directionality = (c - r) / (c + r)

where c is the excess of the column norms of M: the sum of all |column| - t over the columns whose norm exceeds
t = mean + 2 standard deviations of the column norms. r is the excess of the row norms. The directionality is 0 if no
norm exceeds its threshold. Columns of M belong to keys: a positive directionality means that a few dimensions of the
key token dominate M, and a negative directionality means the same of the query token.

The definition of directionality is that of the authors' code (github.com/matteosaponati/attention-geometry,
utils/scores.py). Their code applies it to one matrix for each layer, the sum of the M of all heads. The symmetry score
of a head is 2 `symmetric_share` - 1; the `symmetry_score` of their code is ||S||_F^2 / ||M||_F^2, the symmetric share.

By chance, the row norm and the column norm of each dimension of the embedding are exchangeable: the interval is that of
the directionalities after exchanging both norms in a random half of the dimensions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.frame import fold
from qkjax.interaction.modes import Kernels, Modes
from qkjax.interaction.null import LEVEL

DEVIATIONS = 2  # a norm is in excess above the mean plus this number of standard deviations
EXCHANGES = 400  # number of random halves of the dimensions


class Directionality(NamedTuple):
    """Directionality of the M of each head, and both scores of the sum of M over all heads of a layer.

    Values are NaN if M is zero.

    Attributes:
      directionality: from -1 (only rows of M are in excess) to 1 (only columns of M are).
      directionality_width: half width of the interval about 0 that contains 95% of directionalities by chance.
      layer_directionality, layer_directionality_width: the same for the sum of M over the heads of a layer.
      layer_symmetry_score: from -1 (antisymmetric) to 1 (symmetric), for this sum.
    """

    directionality: Float[np.ndarray, "layers heads"]
    directionality_width: Float[np.ndarray, "layers heads"]
    layer_directionality: Float[np.ndarray, "layers"]
    layer_directionality_width: Float[np.ndarray, "layers"]
    layer_symmetry_score: Float[np.ndarray, "layers"]


def directionality(
    modes: Modes,
    query_kernel: Kernels,
    key_kernel: Kernels,
    norm_scale: Float[Array | np.ndarray, "layers embed"] | None = None,
) -> Directionality:
    """Computes the directionality of all heads and layers, and the symmetry score of all layers.

    Args:
      modes: the modes of the kernels, in any frame.
      query_kernel, key_kernel: the kernels whose M the modes are those of, before folding.
      norm_scale: the LayerNorm scale that M includes, if any; as in `decompose`.

    Example:
      >>> import qkjax
      >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 12, 3, 4))
      >>> scores = directionality(qkjax.decompose(query, query), query, query)  # Wq = Wk: M is symmetric
      >>> bool(np.allclose(scores.layer_symmetry_score, 1)), bool(np.allclose(scores.directionality, 0, atol=1e-5))
      (True, True)
    """
    heads = [_norms_of_heads(*(np.asarray(x[layer], np.float64) for x in modes)) for layer in range(len(query_kernel))]
    layers, symmetry = [], []
    for layer in range(len(query_kernel)):
        scale = None if norm_scale is None else norm_scale[layer]
        query, key = (
            fold(np.asarray(kernel[layer], np.float64), scale, modes.frame.center).reshape(kernel.shape[1], -1)
            for kernel in (query_kernel, key_kernel)
        )
        m = _scaled(query) @ _scaled(key).T
        squares = m.astype(np.float64) ** 2
        layers.append([np.sqrt(squares.sum(axis)) for axis in (0, 1)])
        with np.errstate(invalid="ignore", divide="ignore"):
            symmetry.append((m * m.T).sum(dtype=np.float64) / squares.sum())  # tr(M^2) / ||M||^2
    return Directionality(*_scores(np.stack(heads, 1)), *_scores(np.stack(layers, 1)), np.array(symmetry))


def _scaled(kernel: Float[np.ndarray, "embed columns"]) -> Float[np.ndarray, "embed columns"]:
    """The kernel divided by its largest entry, since neither score depends on the scale of M; in float32."""
    return (kernel / max(np.abs(kernel).max(), np.finfo(np.float64).tiny)).astype(np.float32)


def _norms_of_heads(
    u: Float[np.ndarray, "heads embed rank"],
    s: Float[np.ndarray, "heads rank"],
    v: Float[np.ndarray, "heads embed rank"],
) -> Float[np.ndarray, "2 heads embed"]:
    """Norms of the columns and of the rows of M / s_0: row i has the squared norm sum_n (s_n u_in)^2 / s_0^2."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(s[:, :1] > 0, s / s[:, :1], 0)
    return np.stack([np.sqrt(((x * share[:, None]) ** 2).sum(-1)) for x in (v, u)])


def _scores(norms: Float[np.ndarray, "2 *heads embed"]) -> tuple[Float[np.ndarray, "*heads"], ...]:
    """The directionality, and the half width of its interval by chance, from the norms of columns and of rows."""
    columns, rows = norms
    rng = np.random.default_rng(0)
    exchanged = []
    for _ in range(EXCHANGES):
        swap = rng.random(columns.shape[-1]) < 0.5
        exchanged.append(np.abs(_direction(np.where(swap, rows, columns), np.where(swap, columns, rows))))
    return _direction(columns, rows), np.quantile(exchanged, LEVEL, axis=0)


def _direction(
    columns: Float[np.ndarray, "*heads embed"], rows: Float[np.ndarray, "*heads embed"]
) -> Float[np.ndarray, "*heads"]:
    """(c - r) / (c + r) from the column norms and the row norms."""
    c, r = (_excess(norms) for norms in (columns, rows))
    total = c + r
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.where(total > 0, (c - r) / total, 0)
    return np.where(columns.sum(-1) > 0, scores, np.nan)


def _excess(norms: Float[np.ndarray, "*heads embed"]) -> Float[np.ndarray, "*heads"]:
    threshold = norms.mean(-1) + DEVIATIONS * norms.std(-1, ddof=1)
    return np.maximum(norms - threshold[..., None], 0).sum(-1)
