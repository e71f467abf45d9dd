"""What edits of a model's interactions do to a set of images: one unedited pass, and one pass for each edit.

(An extension of ours: the paper has no ablations.) All edits run through one compiled program, whose arguments the
edited kernels are. Letters: L layers, H heads, Q queries looked at, N tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from qkjax.activations.attention import entropy, jensen_shannon, similarity_preference
from qkjax.activations.representation import cosine, kullback_leibler
from qkjax.analyses.edit import scaled, wide_columns, widened, with_edited
from qkjax.errors import QkjaxError
from qkjax.images.prefetch import batches
from qkjax.images.sources import ImageSet
from qkjax.interaction.edit import Edited
from qkjax.passes.inputs import photograph_grid, resolution_of, scaled_pixels, scaling
from qkjax.passes.settings import batch_groups, batch_size, over_devices
from qkjax.vit.model import ViT
from qkjax.vit.patches import query_places
from qkjax.weights.load import Checkpoint

Ndarray = np.ndarray


@dataclass(frozen=True)
class AblationOptions:
    """How effects are measured.

    Attributes:
      queries: patches, evenly spaced, whose attention is compared; what they attend to is compared in full.
      batch: images at once, as in `ScanOptions`.
      resolution: (height, width) in pixels; None for the checkpoint's own.
      dtype: of the forward pass.
      exact: give all heads the columns that any edit needs (twice as many, and one), so that nothing is left out of
        symmetric parts and rotated modes; the passes take longer.
    """

    queries: int = 16
    batch: int | None = None
    resolution: tuple[int, int] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    exact: bool = False


class Outputs(NamedTuple):
    """What a model makes of images.

    Attributes:
      representation: what the head would see: the pooled token (without pooling, the mean over patches).
      tokens: last ones, of the patches looked at.
      logits: of the classes; None without a head.
      attention: of the class token, if there is one, and the patches looked at.
    """

    representation: Float[Array | Ndarray, "images features"]
    tokens: Float[Array | Ndarray, "images patches embed"]
    logits: Float[Array | Ndarray, "images classes"] | None
    attention: Float[Array | Ndarray, "images L H Q N"]


class Effects(NamedTuple):
    """What an edit does to each image; NaN where a model has no such thing.

    Attributes:
      representation_cosine: of the representation with the unedited model's.
      token_cosine: the same of the last patch tokens, mean over those looked at.
      logits_kl: KL divergence of the edited classes from the unedited ones, bits.
      attention_js: Jensen-Shannon divergence of patches' attention from the unedited one's, bits.
      class_attention_js: of the class token's.
      attention_entropy: of patches' attention, bits (the edited model's own).
      preference: for similar tokens, see `similarity_preference` (the edited model's own).
    """

    representation_cosine: Float[Array | Ndarray, "images"]
    token_cosine: Float[Array | Ndarray, "images"]
    logits_kl: Float[Array | Ndarray, "images"]
    attention_js: Float[Array | Ndarray, "images L H"]
    class_attention_js: Float[Array | Ndarray, "images L H"]
    attention_entropy: Float[Array | Ndarray, "images L H"]
    preference: Float[Array | Ndarray, "images L H"]


class Found(NamedTuple):
    """Effects, and what readouts and representations over all images need."""

    effects: Effects
    representation: Float[Array | Ndarray, "images features"]
    logits: Float[Array | Ndarray, "images classes"] | None


def _look(model: ViT, params, scaling, pixels, places) -> tuple[Outputs, Array, Array]:
    """One forward pass: outputs, entropy and preference of attention."""
    images = scaled_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=("norm", "attention"))
    config = model.config
    prefix, first = config.prefix_tokens, int(config.class_token)
    rows = jnp.concatenate([jnp.arange(first), places + prefix])
    blocks = [out["encoder"][f"block{layer:02d}"] for layer in range(config.depth)]
    attention = jnp.stack([block["attention"][:, :, rows] for block in blocks], axis=1)
    of_patches = attention[..., first:, :]
    preferred = jax.vmap(similarity_preference, (0, 0, None))
    preference = [
        preferred(of_patches[:, layer, ..., prefix:], block["norm"][:, prefix:].astype(jnp.float32), places)
        for layer, block in enumerate(blocks)
    ]
    pooled, tokens, logits = (out.get(name) for name in ("pre_logits", "encoded", "logits"))
    # Without pooling there is one of each for every token.
    pooled, logits = (x if x is None or x.ndim == 2 else x[:, prefix:].mean(axis=1) for x in (pooled, logits))
    outputs = Outputs(pooled, tokens[:, prefix + places], logits, attention)
    outputs = jax.tree.map(lambda x: x.astype(jnp.float32), outputs)
    return outputs, entropy(of_patches), jnp.stack(preference, axis=1)


def _effects(model: ViT, was: Outputs, now: Outputs, entropies, preference) -> Effects:
    first = int(model.config.class_token)
    nothing = jnp.full(entropies.shape, jnp.nan)
    token = jax.vmap(cosine)(was.tokens, now.tokens).mean(-1)
    kl = nothing[:, 0, 0] if was.logits is None else kullback_leibler(was.logits, now.logits)
    patches = jensen_shannon(was.attention[..., first:, :], now.attention[..., first:, :])
    classes = jensen_shannon(was.attention[..., :first, :], now.attention[..., :first, :]) if first else nothing
    return Effects(cosine(was.representation, now.representation), token, kl, patches, classes, entropies, preference)


@partial(jax.jit, static_argnames="model")
def _unedited(model: ViT, params, scaling, pixels, places) -> tuple[Outputs, Effects]:
    outputs, *own = _look(model, params, scaling, pixels, places)
    return outputs, _effects(model, outputs, outputs, *own)


@partial(jax.jit, static_argnames="model")
def _edited(model: ViT, params, made: Edited, scaling, pixels, places, was: Outputs) -> Found:
    outputs, *own = _look(model, with_edited(params, made), scaling, pixels, places)
    return Found(_effects(model, was, outputs, *own), outputs.representation, outputs.logits)


class _Held(NamedTuple):
    """A batch: pixels, what the unedited model makes of them, which of the images are there, how many are wanted."""

    pixels: UInt8[Ndarray, "batch height width 3"]
    was: Outputs
    there: np.ndarray
    count: int


class Ablator:
    """A model and a set of images, ready for edits.

    Images and what the unedited model makes of them are held in memory: for ViT-S/14 at 224 pixels 1.5 MB an image
    (its layers x heads x (queries + 1) x tokens x 4 bytes, and the pixels).

    Attributes:
      unedited: the model against itself: attention entropy and preference are its own.
      names: of the images that could be read.
      index: of these in the set.
      unreadable: index and reason of the others.
      seen: a digest of what the model saw.
    """

    def __init__(self, checkpoint: Checkpoint, images: ImageSet, options: AblationOptions, tick: Callable[[int], None]):
        """Runs the unedited model over the images.

        Args:
          tick: called after each batch, here and in `ablate`, with its number of images; may raise.

        Raises:
          QkjaxError: a resolution that the model cannot take, no query or no image that can be read.
        """
        self._places = query_places(photograph_grid(checkpoint, options.resolution), options.queries)
        self._split, self._whole = over_devices(0), over_devices(None)
        self._own = checkpoint
        base = widened(checkpoint, wide_columns(checkpoint)) if options.exact else checkpoint
        self._model = ViT(base.config, options.dtype)
        self._scaling = jax.device_put(scaling(checkpoint), self._whole)
        self._params = jax.device_put(base.params, self._whole)
        self._exact, self._tick = options.exact, tick
        self._look(checkpoint, images, options)
        self.names = [images.names[i] for i in self.index]

    def _look(self, checkpoint: Checkpoint, images: ImageSet, options: AblationOptions) -> None:
        size, resolution = batch_size(options.batch), resolution_of(checkpoint, options.resolution)
        groups = batch_groups(len(images), size)
        params = jax.device_put(checkpoint.params, self._whole) if options.exact else self._params
        model, found, index, unreadable = ViT(checkpoint.config, options.dtype), [], [], []
        self._batches: list[_Held] = []
        digest = blake2b(digest_size=16)
        made = batches(images, groups, size, checkpoint.preprocess, resolution)
        for group, batch in zip(groups, made, strict=True):
            there = batch.index >= 0
            pixels = jax.device_put(batch.pixels, self._split)
            digest.update(batch.pixels)
            outputs, effects = jax.device_get(_unedited(model, params, self._scaling, pixels, self._places))
            found.append((Found(effects, outputs.representation, outputs.logits), there))
            self._batches.append(_Held(batch.pixels, outputs, there, len(group)))
            index += batch.index[there].tolist()
            unreadable += batch.unreadable
            self._tick(len(group))
        self.index, self.unreadable, self.seen = index, tuple(unreadable), digest.hexdigest()
        if not index:
            raise QkjaxError(f"none of the {len(images)} images could be read: {unreadable[0][1]}")
        self.unedited = _together(found)

    def ablate(self, made: Edited) -> Found:
        """Runs the edited model over the images.

        Args:
          made: kernels and biases, as `interaction.edit.edit` makes them; with `exact`, of `columns` columns.
        """
        made = scaled(made, self._own) if self._exact else made
        made = jax.device_put(made, self._whole)
        found = []
        for held in self._batches:
            pixels, was = jax.device_put((held.pixels, held.was), self._split)
            out = _edited(self._model, self._params, made, self._scaling, pixels, self._places, was)
            found.append((jax.device_get(out), held.there))
            self._tick(held.count)
        return _together(found)

    @property
    def columns(self) -> int | None:
        """What `edit` is to be told."""
        return wide_columns(self._own) if self._exact else None


def _together(found: list[tuple[Found, np.ndarray]]) -> Found:
    """Of all batches, the images that are there."""
    kept = [jax.tree.map(lambda leaf, there=there: np.asarray(leaf)[there], part) for part, there in found]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)
