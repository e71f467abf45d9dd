"""Measures attention sinks and the norms of tokens and values, in one pass over images.

Letters: B images, L layers, H heads, N tokens, S special tokens, K keys.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import xarray as xr
from jaxtyping import Array, Float

from qkjax.activations.sinks import attention_without_key_bias, sink_measures
from qkjax.analyses.decomposition import query_key
from qkjax.analyses.sinks.tables import sinks_dataset
from qkjax.analyses.usable import require_finite, require_readable
from qkjax.images.default_set import is_default_set, photographs, subjects
from qkjax.images.sets import Batch, ImageSet
from qkjax.passes.engine import Rows, batch_groups, run_pass
from qkjax.passes.inputs import batches_of_photographs, for_photographs, normalised_pixels, scaling, whole_grid
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.settings import settings_of
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint

CAPTURED = ("attention_logits", "attention", "key", "value", "residual")


@partial(jax.jit, static_argnames="model")
def _step(model: ViT, params, scaling, query_bias: Float[Array, "L H d"], pixels) -> dict[str, Array]:
    """Computes the measures of the images in a batch."""
    _, out = model.apply({"params": params}, normalised_pixels(pixels, scaling), capture=CAPTURED)
    captured = {name: layer_outputs(out, name) for name in CAPTURED}
    special, measures = model.config.prefix_tokens, []
    for layer in range(model.config.depth):
        own = {name: outputs[layer] for name, outputs in captured.items()}
        attention = without = own["attention"]
        if model.config.rotary is None:
            without = attention_without_key_bias(own["attention_logits"], own["key"], query_bias[layer])
        measures.append(sink_measures(attention, without, own["value"], special))
    stacked = [jnp.stack(part, axis=1) for part in zip(*measures, strict=True)]
    tokens = jnp.stack([*captured["residual"], out["encoder"]["pre_ln"]], axis=1).astype(jnp.float32)
    norms = jnp.linalg.norm(tokens, axis=-1)
    named = dict(zip(measures[0]._fields, stacked, strict=True))
    return named | {"special_norm": norms[..., :special], "patch_norm": norms[..., special:]}


def attention_sinks(
    checkpoint: Checkpoint,
    images: ImageSet | None = None,
    *,
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures which keys most patches attend to, and how long tokens and values are (arXiv 2309.16588, 2309.17453).

    A sink is a key that receives a large share of the attention of all queries. For each head, the function measures
    the mean attention of the patches to the class token, to each register and to the patches, and the same without the
    key bias in this layer. It also measures the norms of the tokens of the residual stream before each layer and after
    the last one, and decides from their distribution whether there are patches of high norm; see
    `qkjax.results.bimodality`.

    An interrupted pass resumes from the file `partial`. Several hosts can divide the images of a pass among themselves.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images. With rotary positions,
        there are no measures without the key bias, because its term then depends on the positions of both tokens.
      images: image set; by default the photographs of scikit-image and scikit-learn, and crops of them. Intervals
        resample photographs together with their crops.
      options: batch size, resolution and floating-point format.
      partial: file in which the pass saves its progress; the caller removes the file. If None, progress is not saved.
      fresh: whether to discard the progress in `partial`, whatever its settings.

    Returns:
      A dataset with dimensions image, layer, head, key, special, stage and patch; see `sinks_dataset`.

    Raises:
      QkjaxError: no image can be read, the model does not support the resolution, or `partial` has different settings.

    Example:
      >>> import qkjax
      >>> images, _ = qkjax.images.photographs(crops=False).spread(2)
      >>> result = qkjax.attention_sinks(qkjax.load("dinov2-vits14-focus"), images)
      >>> result.share.dims, result.key.values.tolist()
      (('image', 'layer', 'head', 'key'), ['class token', 'patches', 'top patch'])
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    if fresh and partial:
        remove(partial)
    checkpoint = for_photographs(checkpoint)
    whole_grid(checkpoint, options.resolution, "the attention that a key receives is a mean over all patches")
    images = photographs() if images is None else images
    settings = settings_of(checkpoint, images, options)
    result = run_pass(
        _on_devices(checkpoint, options),
        (),
        batch_groups(len(images), batch_size(options.batch)),
        batches_of_photographs(checkpoint, images, options),
        partial,
        settings,
        shard=options.shard,
    )
    require_readable(result.unreadable, images, partial)
    index = result.rows.pop("index")
    names = {"attention": "share", "values": "value_norm", "tokens": "patch_norm", "special tokens": "special_norm"}
    require_finite({name: result.rows[key] for name, key in names.items()}, images.name, partial)
    subject, photographed = subjects(images) if is_default_set(images) else (range(len(images)), images.names)
    left_out = [*images.left_out, *((images.names[i], reason) for i, reason in result.unreadable)]
    attrs = {"model": checkpoint.name, "images": images.name, "settings": json.dumps(settings)}
    names = [images.names[i] for i in index]
    clusters = [photographed[subject[i]] for i in index]
    return sinks_dataset(result.rows, checkpoint.config, names, clusters, left_out, attrs)


def _on_devices(checkpoint: Checkpoint, options: PassOptions):
    """Returns the step of the pass, which computes one row of measures per image."""
    split, whole = over_devices(0), over_devices(None)
    biases = query_key(checkpoint.params).query_bias
    on_device = jax.device_put((checkpoint.params, scaling(checkpoint.preprocess), biases), whole)
    model = ViT(checkpoint.config, options.dtype)

    def step(state: tuple, batch: Batch) -> tuple[tuple, Callable[[], Rows]]:
        result = _step(model, *on_device, jax.device_put(batch.pixels, split))
        present = batch.index >= 0

        def rows() -> Rows:
            measured = {name: value[present] for name, value in jax.device_get(result).items()}
            return measured | {"index": batch.index[present]}

        return state, rows

    return step
