"""Decomposes the attention logits of one image of a model with rotary positions into modes, for the report's page.

Each mode's term is that of its rotated queries and keys, so the terms are exact; see `qkjax.interaction.rotary.exact`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from qkjax.activations.rotary_contribution import rotary_contributions
from qkjax.analyses.image_rotary import CAPTURED, rotary_heads
from qkjax.analyses.usable import require_finite
from qkjax.images.preprocess import Pixels, normalise
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.interaction.rotary.exact import HeadMaps, project_rotated
from qkjax.interaction.rotary.rotation import by_plane, rotate
from qkjax.report.attended import Attended
from qkjax.report.pack import FINE, quantised
from qkjax.vit.model import ViT, patch_grid
from qkjax.vit.rotary import token_angles
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint


class KeysAtPlaces(NamedTuple):
    """The keys that the query direction of a mode attends to from the place of a token i:

        u_n M(p_i - p_j) y_j = sum_c (direction[h, n] R(p_i))[c] places[h, j, c] places_step[h, c] direction_step[h, n]

    Columns are in the order of `by_plane`: the first columns of all planes, and then the second ones.

    Attributes:
      places: rotated keys y_j Wk R(p_j), without bias, in int16; see `qkjax.report.pack.quantised`.
      direction: u_n Wq, in int16.
      places_step, direction_step: factors by which these integers are multiplied.
    """

    places: Int[np.ndarray, "layers heads tokens head_dim"]
    places_step: Float[np.ndarray, "layers heads head_dim"]
    direction: Int[np.ndarray, "layers heads modes head_dim"]
    direction_step: Float[np.ndarray, "layers heads modes"]


def angles_of(checkpoint: Checkpoint, pixels: Pixels) -> Float[np.ndarray, "tokens planes"]:
    """The angles of all tokens of a picture."""
    return token_angles(checkpoint.config, checkpoint.params, patch_grid(checkpoint.config, pixels.shape[:2]))


def attended_at_places(checkpoint: Checkpoint, modes: Modes, pixels: Pixels) -> tuple[Attended, KeysAtPlaces]:
    """Computes all terms of the attention logits of one picture, and the keys of each mode at all places.

    The field `bias` is 0, because all bias terms depend on the query. The field `other` contains these terms, and the
    planes that no mode includes, minus their mean over keys. `bias_share` is the share of the key bias.

    Args:
      checkpoint: a model with rotary positions.
      modes: the result of `decompose(checkpoint)`.
      pixels: the picture at the model's resolution.

    Raises:
      QkjaxError: a term is NaN or infinite.
    """
    parts, maps = rotary_heads(checkpoint, modes)
    images, angles = normalise(pixels, checkpoint.preprocess)[None], angles_of(checkpoint, pixels)
    arrays = QueryKey(*parts[:6]), maps, np.asarray(modes.u), angles
    model = ViT(checkpoint.config)
    both = _attended(model, checkpoint.params, images, *arrays, pairs=parts.rotation.pairs)
    terms, keys = Attended(*map(np.asarray, both[0])), KeysAtPlaces(*map(np.asarray, both[1]))
    values = {"query maps": terms.query_step, "key maps": terms.key_step, "keys": keys.places_step}
    require_finite(values | {"other terms": terms.other_step}, "the picture")
    return terms, keys


@partial(jax.jit, static_argnames=("model", "pairs"))
def _attended(model: ViT, params, images, parts: QueryKey, maps: HeadMaps, u, angles, pairs):
    _, out = model.apply({"params": params}, images, capture=CAPTURED)
    captured = [layer_outputs(out, name) for name in CAPTURED]
    layers = []
    for i in range(model.config.depth):
        own = [x[i] for x in captured]
        layers.append(_layer(*own, QueryKey(*(x[i] for x in parts[:6])), HeadMaps(*(x[i] for x in maps)), u[i], angles,
                             pairs))  # fmt: skip
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


def _layer(_, query, key, logits, attention, parts: QueryKey, maps: HeadMaps, u, angles, pairs):
    """The terms of one layer, and the keys at all places."""
    root = np.sqrt(query.shape[-1]).astype(np.float32)
    biases = parts.query_bias, parts.key_bias
    shares = rotary_contributions(query, key, *biases, logits, attention, angles, maps, pairs)
    rotated = [rotate(x - b[None, None], angles[:, None], pairs) for x, b in zip((query, key), biases, strict=True)]
    alpha, beta = (x[0].transpose(1, 0, 2) for x in project_rotated(*rotated, maps.query, maps.key))
    alpha = alpha * (maps.s / root)[:, None]
    other = logits[0] - jnp.einsum("hin,hjn->hij", alpha, beta, precision="highest")
    other, other_step = quantised(other - other.mean(-1, keepdims=True), (1, 2), FINE)
    (alpha, alpha_step), (beta, beta_step) = (quantised(x, (1,), FINE) for x in (alpha, beta))
    bias = jnp.zeros(alpha.shape[:2], jnp.float32)
    steps = alpha_step, beta_step
    terms = Attended(alpha, beta, *steps, bias, other, other_step, shares.modes[0, 0], shares.key_bias[0, 0])
    places = _planes_in_order(rotated[1][0].transpose(1, 0, 2), pairs)
    direction = jnp.einsum("hdn,dhk->hnk", u, parts.query_kernel, precision="highest")
    direction = _planes_in_order(direction, pairs)
    return terms, KeysAtPlaces(*quantised(places, (1,), FINE), *quantised(direction, (2,), FINE))


def _planes_in_order(x, pairs):
    planes = by_plane(x, pairs)
    return planes.reshape(*x.shape[:-1], -1)
