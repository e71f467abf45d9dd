"""Measures which tokens attend to which, in one pass over scenes that have one odd object (figures 2, S4 of the paper).

Letters: L layers, H heads, D embed.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from qkjax.activations.attention import region_attention, similarity_preference
from qkjax.analyses.decomposition import decompose, frame_attrs
from qkjax.analyses.preference.tables import QUERIES, STREAMS, preference_dataset
from qkjax.analyses.usable import require_finite, require_readable
from qkjax.errors import QkjaxError
from qkjax.images.generated import patterns
from qkjax.images.scenes import Scene, blank_scene, crop_to_model
from qkjax.images.sets import Batch, ImageSet
from qkjax.interaction.metrics import measure
from qkjax.passes.engine import Rows, batch_groups, run_pass
from qkjax.passes.inputs import batches_with_masks, for_photographs, normalised_pixels, scaling, whole_grid
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.settings import settings_of
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint


class Measures(NamedTuple):
    """Measures of attention in each image.

    Attributes:
      mass, own, special: fields of `qkjax.activations.attention.RegionAttention`, for each of the two `QUERIES` and
        each of the three `REGIONS`.
      similarity: preference for similar tokens; see `similarity_preference`. All patches are queries, and similarity is
        measured between outputs of the LayerNorm.
      area: share of the image's patches that each region covers. This share equals the mass under uniform attention.
      place: index of the query patch, where patches are counted row by row.
      covered: share of the query patch that its own region covers.
      target_patches: area of the target in patches.
    """

    mass: Float[Array, "images L H queries regions"]
    own: Float[Array, "images L H queries"]
    special: Float[Array, "images L H queries"]
    similarity: Float[Array, "images L H"]
    area: Float[Array, "images regions"]
    place: Int[Array, "images queries"]
    covered: Float[Array, "images queries"]
    target_patches: Float[Array, "images"]


@partial(jax.jit, static_argnames="model")
def _step(model: ViT, params, scaling, pixels, regions, present) -> tuple[Measures, Array]:
    """Computes the measures of the images in a batch, and the sum of the unit vectors of their centre tokens."""
    images = normalised_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=("attention", *STREAMS))
    special = model.config.prefix_tokens
    batch, _, rows, columns = regions.shape
    flat = regions.reshape(batch, -1, rows * columns)
    place = flat[:, : len(QUERIES)].argmax(-1)  # if several patches have the same value, the first of them
    centre = special + (rows // 2) * columns + columns // 2
    measures, directions = [], []
    captured = {name: layer_outputs(out, name) for name in ("attention", *STREAMS)}
    for layer in range(model.config.depth):
        block = {name: outputs[layer] for name, outputs in captured.items()}
        query_attention = jnp.take_along_axis(block["attention"], special + place[:, None, :, None], axis=2)
        patches = block["norm"][:, special:].astype(jnp.float32)
        preference = jax.vmap(similarity_preference, (0, 0, None))
        similarity = preference(block["attention"][:, :, special:, special:], patches, jnp.arange(rows * columns))
        measures.append((*jax.vmap(region_attention)(query_attention, flat, place), similarity))
        tokens = jnp.stack([block[name][:, centre].astype(jnp.float32) for name in STREAMS], axis=1)
        unit = tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        directions.append((unit * present[:, None, None]).sum(0))
    stacked = [jnp.stack(part, axis=1) for part in zip(*measures, strict=True)]
    covered = jnp.take_along_axis(flat[:, : len(QUERIES)], place[..., None], axis=-1)[..., 0]
    return Measures(*stacked, flat.mean(-1), place, covered, flat[:, 0].sum(-1)), jnp.stack(directions, axis=1)


def attention_preference(
    checkpoint: Checkpoint,
    scenes: ImageSet[Scene] | None = None,
    *,
    frame: str = "plain",
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures how much tokens attend to their own category, to the opposite category, and to the background.

    Every scene has a target and distractors, which are the two categories. There are two queries per scene: the patch
    that overlaps the target's mask most, and the patch that overlaps the distractors' mask most. For every head, the
    attention of each query to the patches is multiplied by the masks and summed (the paper, section 3.1 and figure 2).
    With rotary positions, the attention is the model's own, and the weighted cosine of a head that of the mean over
    places.

    An interrupted pass resumes from the file `partial`. Several hosts can divide the images of a pass among themselves.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      scenes: image set of scenes; by default 200 generated scenes; see `qkjax.images.generated.patterns`. See `open_o3`
        for O3.
      frame: frame of the modes whose weighted cosine is in the result: "plain", or "folded" to include the LayerNorm
        scale, as `decompose(..., fold_scale=True)` does.
      options: batch size, resolution and floating-point format.
      partial: file in which the pass saves its progress; the caller removes the file. If None, progress is not saved.
      fresh: whether to discard the progress in `partial`, whatever its settings.

    Returns:
      A dataset with dimensions image, layer, head, query (target, distractors) and region (target, distractors,
      background); see `preference_dataset`.

    Raises:
      QkjaxError: `frame` is unknown, no scene can be read, the model does not support the resolution, or `partial` has
        different settings.

    Example:
      >>> import qkjax
      >>> from qkjax.images.generated import patterns
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> result = qkjax.attention_preference(checkpoint, patterns(count=2, seed=0))
      >>> result.mass.dims
      ('image', 'layer', 'head', 'query', 'region')
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    if fresh and partial:
        remove(partial)
    if frame not in ("plain", "folded"):
        raise QkjaxError(f"frame={frame!r}: expected 'plain' or 'folded'")
    checkpoint = for_photographs(checkpoint)
    whole_grid(checkpoint, options.resolution, "attention is compared with regions of the whole image")
    scenes = patterns(200, 0) if scenes is None else scenes
    settings = settings_of(checkpoint, scenes, options, frame=frame)
    result = run_pass(
        _on_devices(checkpoint, options),
        (),
        batch_groups(len(scenes), batch_size(options.batch)),
        batches_with_masks(checkpoint, scenes, options, crop_to_model, blank_scene),
        partial,
        settings,
        shard=options.shard,
    )
    require_readable(result.unreadable, scenes, partial)
    values = {"attention": "mass", "similarities": "similarity", "tokens": "centre"}
    require_finite({name: result.rows[key] for name, key in values.items()}, scenes.name, partial)
    modes = decompose(checkpoint, fold_scale=frame == "folded")
    centre = np.zeros(result.rows["centre"].shape[1:])
    for batch_sum in result.rows.pop("centre"):
        # summed in the order of the batches, so that interruptions and several hosts leave the result bit-identical
        centre = centre + batch_sum
    index = result.rows.pop("index")
    left_out = [*scenes.left_out, *((scenes.names[i], reason) for i, reason in result.unreadable)]
    attrs = {"model": checkpoint.name, "scenes": scenes.name, "settings": json.dumps(settings), **frame_attrs(modes)}
    attrs["frame"] = modes.frame.in_words()
    names = [scenes.names[i] for i in index]
    return preference_dataset(result.rows, names, anisotropy(centre, len(index)), left_out, measure(modes), attrs)


def _on_devices(checkpoint: Checkpoint, options: PassOptions):
    """Returns the step of the pass, which computes one row of measures per image and a sum of centre tokens."""
    split, whole = over_devices(0), over_devices(None)
    params, scale = jax.device_put((checkpoint.params, scaling(checkpoint.preprocess)), whole)
    model = ViT(checkpoint.config, options.dtype)

    def step(state: tuple, batch: Batch) -> tuple[tuple, Callable[[], Rows]]:
        present = batch.index >= 0
        arrays = jax.device_put((batch.pixels, batch.masks, present.astype(np.float32)), split)
        result = _step(model, params, scale, *arrays)

        def rows() -> Rows:
            measures, centre = jax.device_get(result)
            rows = {name: value[present] for name, value in measures._asdict().items()}
            return rows | {"index": batch.index[present], "centre": centre[None]}

        return state, rows

    return step


def anisotropy(centre_sum: Float[np.ndarray, "streams L D"], images: int) -> Float[np.ndarray, "streams L"]:
    """The mean cosine between the centre tokens of two different images (the paper, figure S4).

    For n unit vectors x, the mean of x_i . x_j over i != j is (|sum x|^2 - n) / (n (n - 1)). For a single image, the
    result is NaN.

    Args:
      centre_sum: sum over the images of the centre tokens, each of which is normalised to unit length.
      images: number n of images.
    """
    if images < 2:
        return np.full(centre_sum.shape[:2], np.nan)
    return ((centre_sum**2).sum(-1) - images) / (images * (images - 1))
