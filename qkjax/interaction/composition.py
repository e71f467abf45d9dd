"""Measures whether heads read the directions that earlier heads write, from the weights alone.

Letters: L layers, H heads, D embed, R modes.

Head A writes with its output-value matrix W = Wv Wo, and head B reads with a matrix M, which is its query-key
interaction (for its queries), the transpose (for its keys), or its own output-value matrix (for its values). The
composition of A and B is ||W M||_F / (||W||_F ||M||_F) (Elhage et al. 2021, A Mathematical Framework for Transformer
Circuits). Since ||W M||_F^2 = sum_nm s_n^2 s'_m^2 (v_n . u'_m)^2, the modes of both matrices suffice, and the squared
composition is a weighted mean of squared cosines between written directions v_n and read directions u'_m
(arXiv 2406.09519 compares such modes in language models).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import gammaincinv

from qkjax.interaction.null import LEVEL, cosine_quantile

ROUNDING = 1e-12
Numbers = Array | np.ndarray
Pairs = Float[np.ndarray, "from_layers from_heads to_layers to_heads"]


class Composition(NamedTuple):
    """How strongly each head reads what each other head writes. A pair with a head whose matrix is zero has NaN.

    Attributes:
      score: ||W M||_F / (||W||_F ||M||_F), between 0 and 1.
      chance: the 95% quantile of the score for two matrices with the same singular values and random directions.
      deviation: the squared score minus its mean by chance, in standard deviations by chance. It is not finite if all
        rotations have the same score.
      from_mode, to_mode: the pair of modes with the largest share in the squared score.
      mode_share: the share of this pair of modes.
      mode_cosine: magnitude of the cosine between the written direction and the read direction of this pair of modes.
    """

    score: Pairs
    chance: Pairs
    deviation: Pairs
    from_mode: Int[np.ndarray, "from_layers from_heads to_layers to_heads"]
    to_mode: Int[np.ndarray, "from_layers from_heads to_layers to_heads"]
    mode_share: Pairs
    mode_cosine: Pairs


def compose(
    written: Float[Numbers, "from_layers from_heads embed from_modes"],
    written_strength: Float[Numbers, "from_layers from_heads from_modes"],
    read: Float[Numbers, "to_layers to_heads embed to_modes"],
    read_strength: Float[Numbers, "to_layers to_heads to_modes"],
    dimensions: int,
) -> Composition:
    """Measures the composition of every head with every head, in both orders of layers.

    Args:
      written, written_strength: v and s of the output-value modes of the heads that write.
      read, read_strength: read directions and s of the modes of the heads that read: u of query-key modes for
        composition with queries, v for keys, and u of output-value modes for values.
      dimensions: dimension of the space in which the directions lie: D, or D - 1 if both are orthogonal to the mean
        direction.

    Example:
      >>> import numpy as np
      >>> from qkjax.interaction.modes import decompose
      >>> query, key = np.random.default_rng(0).standard_normal((2, 2, 12, 3, 4))
      >>> u, s, v = decompose(query, key)
      >>> pairs = compose(v, s, v, s, 12)  # each head reads exactly what it writes
      >>> pairs.score.shape, bool(np.diagonal(pairs.mode_cosine[0, :, 0]).min() > 0.999)
      ((2, 3, 2, 3), True)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        energies = [_shares(s) for s in (written_strength, read_strength)]
    first, second = (energy.astype(np.float32) for energy in energies)
    square, place, share, cosine = _stacked(
        [[_of_layers(written[i], first[i], read[j], second[j]) for j in range(len(read))] for i in range(len(written))]
    )
    mean, deviation = chance_moments(
        *((energy**2).sum(-1) for energy in (energies[0][:, :, None, None], energies[1][None, None])), dimensions
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (square - mean) / deviation
    modes = np.unravel_index(place, (written.shape[-1], read.shape[-1]))
    return Composition(
        np.sqrt(square),
        np.sqrt(_gamma_quantile(mean, deviation)).astype(np.float32),
        distance.astype(np.float32),
        *(np.asarray(mode, np.int16) for mode in modes),
        share,
        cosine,
    )


def chance_moments(
    first: Float[np.ndarray, "*first"], second: Float[np.ndarray, "*second"], dimensions: int
) -> tuple[float, Float[np.ndarray, "*pairs"]]:
    """The mean and the standard deviation of the squared composition of matrices with random singular vectors (exact).

    The squared composition is sum_nm a_n b_m Q_nm^2 for a random orthogonal matrix Q of n dimensions. With
    A = sum a_n^2 and B = sum b_m^2, its moments follow from E Q_11^2 = 1 / n, E Q_11^4 = 3 / (n (n + 2)),
    E Q_11^2 Q_12^2 = 1 / (n (n + 2)) and E Q_11^2 Q_22^2 = (n + 1) / (n (n - 1) (n + 2)).

    Args:
      first: A, the sum of the squares of the shares a_n = s_n^2 / sum s^2 of the first matrix.
      second: B, the same for the second matrix.
      dimensions: n, at least 2.
    """
    n = dimensions
    same_row = first * (1 - second) + (1 - first) * second
    second_moment = (3 * first * second + same_row + (1 - first) * (1 - second) * (n + 1) / (n - 1)) / (n * (n + 2))
    relative = (
        n**2 * second_moment - 1
    )  # rounding errors of 0 count as 0: some matrices read everything in any rotation
    return 1 / n, np.sqrt(np.where(relative > ROUNDING, relative, 0)) / n


def largest_cosine(dimensions: int, pairs: int) -> float:
    """An upper bound, valid with a probability of 95%, on the cosines of `pairs` pairs of random directions.

    The bound is the quantile of one pair at the level 1 - 0.05 / pairs (Bonferroni's inequality).
    """
    return cosine_quantile(dimensions, 1 - (1 - LEVEL) / pairs)


def _shares(strength: Float[Numbers, "layers heads modes"]) -> Float[np.ndarray, "layers heads modes"]:
    """The share of each mode in the squared Frobenius norm of its head; first divided by the largest s, as squares of
    large strengths leave the range of numbers."""
    relative = np.asarray(strength, np.float64)
    relative = relative / relative.max(-1, keepdims=True)
    return relative**2 / (relative**2).sum(-1, keepdims=True)


@jax.jit
def _of_layers(written, first, read, second):
    """The squared composition of the heads of two layers, and the place, share and cosine of the main pair of modes."""
    cosine = partial(jnp.einsum, precision="highest")("hdn,kdm->hknm", written, read)
    terms = first[:, None, :, None] * second[None, :, None, :] * cosine**2
    square = terms.sum((-1, -2))
    flat, cosine = (x.reshape(*x.shape[:2], -1) for x in (terms, jnp.abs(cosine)))
    place = flat.argmax(-1)
    largest, cosine = (jnp.take_along_axis(x, place[..., None], -1)[..., 0] for x in (flat, cosine))
    return square, place, largest / square, cosine


def _stacked(layers: list[list[tuple]]) -> list[np.ndarray]:
    """Stacks fields of shape (from_heads, to_heads) of all pairs of layers to (from_layers, from_heads, to_layers,
    to_heads)."""
    by_layer = [[np.stack(field, axis=1) for field in zip(*jax.device_get(row), strict=True)] for row in layers]
    return [np.stack(field) for field in zip(*by_layer, strict=True)]


def _gamma_quantile(mean: float, deviation: np.ndarray) -> np.ndarray:
    """The 95% quantile of a gamma distribution, which has nearly the shape of the distribution by chance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = (mean / deviation) ** 2
        return np.where(deviation > 0, gammaincinv(shape, LEVEL) * mean / shape, mean)
