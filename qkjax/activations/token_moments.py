"""Running moments of the tokens of many images, and what follows from them: mean, position factor and content.

In one layer, the token at place i of image b is y_bi = m + p_i + c_bi. The mean m is over images and places, the
position factor p_i is the mean over images at place i minus m, and the content c_bi is the rest. Hence the position
factor sums to 0 over places, the content sums to 0 over images at every place, and the covariance of the tokens is the
sum of the covariance of the position factor and that of the content.

Each batch is centred at its own means in float32, so that the squares of the mean do not cancel. Batches are then
merged on the host in float64 (Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
sample variances"). Rounding errors therefore do not grow with the number of images: relative to the covariance of the
content, they are about 1e-7 times the ratio of the mean to the content.

Letters: L layers, B images, N tokens, P patches, D embed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.runtime.precision import full_precision

HALVES = 2
"""Number of parts of the image set with a position factor of their own; see `TokenStatistics.position_share_halves`."""


class TokenMoments(NamedTuple):
    """Moments of the tokens of some images, for all layers, from which the moments of more images can be updated.

    Attributes:
      images: number of images in each half of the image set.
      place_mean: mean over the images of each half, at each place. Special tokens come first, and then the patches.
      scatter: sum over images and patches of (y - a)^T (y - a), where a is the place mean of the image's own half.
    """

    images: Float[Array | np.ndarray, "halves"]
    place_mean: Float[Array | np.ndarray, "L halves N D"]
    scatter: Float[Array | np.ndarray, "L D D"]


class TokenStatistics(NamedTuple):
    """Mean, position factor and content of the tokens of a set of images, for all layers. Covariances are of patches.

    Attributes:
      mean: m, the mean over images and patches.
      place_mean: mean over images at each place, special tokens first; for patches, m + p_i.
      position: covariance of the position factor, the mean of p_i^T p_i over patches.
      content: covariance of the content, the mean of c^T c over images and patches.
      position_share: share of the position factor in the variance of tokens, tr(position) / tr(position + content).
      position_share_halves: the same share, if the variance of the position factor is the covariance of the factors of
        two separate halves of the images. The position factor of few images contains some of their content, which
        makes `position_share` too large. The factors of two halves share no content. NaN if a half has no image.
    """

    mean: Float[np.ndarray, "L D"]
    place_mean: Float[np.ndarray, "L N D"]
    position: Float[np.ndarray, "L D D"]
    content: Float[np.ndarray, "L D D"]
    position_share: Float[np.ndarray, "L"]
    position_share_halves: Float[np.ndarray, "L"]


def empty_moments(layers: int, tokens: int, embed: int) -> TokenMoments:
    """The moments of no images, in float64."""
    return TokenMoments(np.zeros(HALVES), np.zeros((layers, HALVES, tokens, embed)), np.zeros((layers, embed, embed)))


def batch_moments(
    tokens: Float[Array, "B N D"], weights: Float[Array, "halves B"], special: int
) -> tuple[Float[Array, "halves N D"], Float[Array, "D D"]]:
    """The place means and the scatter of one layer for a batch of images.

    Args:
      tokens: tokens of the layer, such as the captured "norm".
      weights: 1 for the images of each half, and 0 for all other images.
      special: number of special tokens before the patches.

    Returns:
      `place_mean` and `scatter` of `TokenMoments`, without the axis of layers.
    """
    tokens = tokens.astype(jnp.float32)
    mean = jnp.einsum("hb,bnd->hnd", weights, tokens, precision="highest")
    mean = mean / jnp.maximum(weights.sum(1), 1)[:, None, None]
    own = jnp.einsum("hb,hnd->bnd", weights, mean, precision="highest")
    centred = ((tokens - own) * weights.sum(0)[:, None, None])[:, special:]
    return mean, jnp.einsum("bnd,bne->de", centred, centred, precision=full_precision())


def merge_moments(first: TokenMoments, second: TokenMoments, special: int) -> TokenMoments:
    """The moments of the images of both arguments, in float64 on the host.

    Args:
      first, second: moments of separate images.
      special: number of special tokens before the patches.
    """
    first, second = (jax.tree.map(lambda x: np.asarray(x, np.float64), part) for part in (first, second))
    images = first.images + second.images
    share = np.divide(second.images, images, out=np.zeros_like(images), where=images > 0)
    step = second.place_mean - first.place_mean
    place_mean = first.place_mean + share[None, :, None, None] * step
    between = (np.sqrt(first.images * share)[None, :, None, None] * step)[:, :, special:]
    return TokenMoments(images, place_mean, first.scatter + second.scatter + _gram(between))


def statistics_of(moments: TokenMoments, special: int) -> TokenStatistics:
    """Mean, position factor and content of the tokens, from their moments.

    Args:
      moments: moments of all images, at least one.
      special: number of special tokens before the patches.

    Example:
      >>> import numpy as np
      >>> from qkjax.activations.token_moments import TokenMoments, statistics_of
      >>> places = np.array([[[[0.0], [2.0]], [[0.0], [2.0]]]])  # one layer, two halves, two patches, one dimension
      >>> result = statistics_of(TokenMoments(np.ones(2), places, np.full((1, 1, 1), 4.0)), special=0)
      >>> result.position.item(), result.content.item(), result.position_share.item()
      (1.0, 1.0, 0.5)
    """
    moments = TokenMoments(*(np.asarray(x, np.float64) for x in moments))
    halves = moments.place_mean[:, :, special:] - moments.place_mean[:, :, special:].mean(2, keepdims=True)
    one = TokenMoments(moments.images[:1], moments.place_mean[:, :1], moments.scatter)  # the scatter of both halves
    other = TokenMoments(moments.images[1:], moments.place_mean[:, 1:], np.zeros_like(moments.scatter))
    joined = merge_moments(one, other, special)
    place_mean = joined.place_mean[:, 0]
    patches = place_mean.shape[1] - special
    mean = place_mean[:, special:].mean(1)
    position = _gram((place_mean[:, special:] - mean[:, None])[:, None]) / patches
    content = joined.scatter / (joined.images[0] * patches)
    variances = [np.trace(x, axis1=1, axis2=2) for x in (position, position + content)]
    across = np.einsum("lnd,lnd->l", halves[:, 0], halves[:, 1]) / patches if (moments.images > 0).all() else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = variances[0] / variances[1], across / variances[1]
    return TokenStatistics(mean, place_mean, position, content, *shares)


def _gram(x: Float[np.ndarray, "L halves P D"]) -> Float[np.ndarray, "L D D"]:
    """Sum over halves and patches of x^T x."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    return np.swapaxes(flat, -1, -2) @ flat
