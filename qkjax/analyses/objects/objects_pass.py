"""One pass over images with marked objects: is the object that a mode asks from the one that it asks for? (The paper's
figure 6.) Stopped at any moment, the next call goes on to the same bits. Letters: L layers, H heads, R modes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qkjax.activations.largest_object import chosen_objects
from qkjax.activations.project import Stream, project
from qkjax.activations.scores import both_signs
from qkjax.activations.top_k import Top, add, empty
from qkjax.errors import QkjaxError
from qkjax.images.segmented import ObjectBatch, ObjectSet, object_batches
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import resolution_of, scaled_pixels, scaling
from qkjax.passes.partial import Unreadable, go_through, read_unfinished, write_unfinished
from qkjax.passes.settings import batch_groups, batch_size, over_devices
from qkjax.vit.model import ViT
from qkjax.weights.load import Checkpoint


@dataclass(frozen=True)
class ObjectOptions:
    """What is looked at.

    Attributes:
      top: images for each mode, those with the largest products of the maxima of both maps.
      stream: the tokens that are projected, see `maps.project.Stream`.
      batch: images at once, as in `ScanOptions`.
      resolution: (height, width) in pixels; None for the checkpoint's own.
      dtype: of the forward pass.
    """

    top: int = 5
    stream: Stream = "norm"
    batch: int | None = None
    resolution: tuple[int, int] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class ObjectsFound(NamedTuple):
    """Of each mode and sign, best image first.

    Attributes:
      score: of the image; -inf where there were too few.
      image: index; -1 there.
      same: whether the object with the largest projection per area on u is the one with the largest on v.
      objects: how many each image of the set has; 0 where it could not be read.
      unreadable: index and reason of images that could not be read, or have fewer than two objects.
    """

    score: Float[np.ndarray, "L H R signs top"]
    image: Int[np.ndarray, "L H R signs top"]
    same: Bool[np.ndarray, "L H R signs top"]
    objects: Int[np.ndarray, "images"]
    unreadable: Unreadable


@partial(jax.jit, static_argnames=("model", "stream"), donate_argnames="top")
def _step(model: ViT, params, modes: Modes, scaling, top: Top, pixels, objects, index, stream: Stream) -> Top:
    """The top images with one more batch, in the place of the old ones."""
    images = scaled_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=(stream,))
    scores, same = [], []
    for layer in range(model.config.depth):
        tokens = out["encoder"][f"block{layer:02d}"][stream][:, model.config.prefix_tokens :]
        maps = project(tokens, modes.u[layer], modes.v[layer])
        scores.append(both_signs("product", maps[:, :, 0], maps[:, :, 1]))
        chosen = jax.vmap(chosen_objects)(maps, objects)  # (batch, 2, heads, modes, signs)
        same.append(chosen[:, 0] == chosen[:, 1])
    scores, same = (jnp.stack(x, axis=1) for x in (scores, same))
    noted = 2 * index.reshape(-1, *(1,) * (same.ndim - 1)) + same
    return add(top, scores, index, noted)


class _State(NamedTuple):
    """Batches done, and what they gave. In `top`, an image is twice its index, and one more where `same`."""

    done: int
    top: Top
    objects: Int[Array | np.ndarray, "images"]
    unreadable: Unreadable


def find_objects(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ObjectSet,
    options: ObjectOptions,
    path: Path,
    settings: Mapping[str, str],
) -> ObjectsFound:
    """The whole pass, with a progress bar.

    Args:
      modes: of the checkpoint, in the plain frame.
      path: file (npz) in which what was done is kept; it is the caller's to remove, once the result is safe.
      settings: what the result depends on, as `scan.settings_of` says.

    Raises:
      QkjaxError: no image wanted, a partial result of other settings, or a file that cannot be written.
      KeyboardInterrupt: between two batches; what was done is kept.
    """
    if options.top < 1:
        raise QkjaxError("--top is a whole number from 1 up")
    config, size = checkpoint.config, batch_size(options.batch)
    resolution = resolution_of(checkpoint, options.resolution)
    groups = batch_groups(len(images), size)
    layers, heads, _, rank = modes.u.shape
    nothing = empty((layers, heads, rank, 2), min(options.top, len(images)))
    state = _resume(path, settings) or _State(0, nothing, np.zeros(len(images), np.int64), ())
    split, whole = over_devices(0), over_devices(None)
    held = jax.device_put((checkpoint.params, Modes(*modes), scaling(checkpoint)), whole)
    model = ViT(config, options.dtype)
    left, done = groups[state.done :], sum(map(len, groups[: state.done]))
    made = object_batches(images, left, size, checkpoint.preprocess, resolution, config.patch_size)

    def step(state: _State, batch: ObjectBatch) -> _State:
        arrays = jax.device_put((batch.pixels, batch.objects, batch.index), split)
        top = _step(model, *held, jax.device_put(state.top, whole), *arrays, stream=options.stream)
        objects, there = state.objects.copy(), batch.index >= 0
        objects[batch.index[there]] = (batch.objects[there].sum(-1) > 0).sum(-1)
        unreadable = (*state.unreadable, *batch.unreadable)
        return _State(state.done + 1, jax.block_until_ready(top), objects, unreadable)

    work = ((len(group), batch) for group, batch in zip(left, made, strict=True))
    state = go_through(state, work, step, lambda state: _save(path, settings, state), len(images), done)
    score, noted = (np.asarray(x) for x in state.top)
    same = (noted % 2 == 1) & (noted >= 0)
    return ObjectsFound(score, np.where(noted < 0, -1, noted // 2), same, state.objects, state.unreadable)


def _save(path: Path, settings: Mapping[str, str], state: _State) -> None:
    arrays = {"done": np.array(state.done), "score": np.asarray(state.top.score), "image": np.asarray(state.top.image)}
    write_unfinished(path, settings, {**arrays, "objects": np.asarray(state.objects)}, state.unreadable)


def _resume(path: Path, settings: Mapping[str, str]) -> _State | None:
    """Where an unfinished pass stands; None without one."""
    found = read_unfinished(path, settings)
    if found is None:
        return None
    a, unreadable = found
    top = Top(jnp.asarray(a["score"]), jnp.asarray(a["image"]))
    return _State(int(a["done"]), top, a["objects"], unreadable)
