"""One pass over scenes with an odd object: where the tokens of the odd one and of the others attend, in every head.

What was done is kept in a file as the pass goes on, as `scan` does it: stopped at any moment, the next call goes on to
the same bits. Letters: L layers, H heads, D embed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.activations.attention import attended, similarity_preference
from qkjax.images.scenes import SceneBatch, Scenes, scene_batches
from qkjax.passes.inputs import resolution_of, scaled_pixels, scaling
from qkjax.passes.partial import Unreadable, go_through, read_unfinished, write_unfinished
from qkjax.passes.settings import batch_groups, batch_size, over_devices
from qkjax.vit.model import ViT
from qkjax.weights.load import Checkpoint

QUERIES = ("target", "distractors")
STREAMS = ("residual", "norm")
Ndarray = np.ndarray


@dataclass(frozen=True)
class PreferenceOptions:
    """How attention is measured.

    Attributes:
      batch: images at once, as in `ScanOptions`.
      resolution: (height, width) in pixels; None for the checkpoint's own.
      dtype: of the forward pass.
    """

    batch: int | None = None
    resolution: tuple[int, int] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Measures(NamedTuple):
    """Of each image.

    Attributes:
      mass, own, special: see `Attended`, of the two `QUERIES`, towards `REGIONS`.
      similarity: see `similarity_preference`, of all patches, by the LayerNorm's output.
      area: share of the patches that each region is: what uniform attention would give it.
      place: of the patches that ask, by rows.
      covered: how much of each is of its own region.
      target_patches: area of the target in patches.
    """

    mass: Float[Array | Ndarray, "images L H queries regions"]
    own: Float[Array | Ndarray, "images L H queries"]
    special: Float[Array | Ndarray, "images L H queries"]
    similarity: Float[Array | Ndarray, "images L H"]
    area: Float[Array | Ndarray, "images regions"]
    place: Int[Array | Ndarray, "images queries"]
    covered: Float[Array | Ndarray, "images queries"]
    target_patches: Float[Array | Ndarray, "images"]


class Measured(NamedTuple):
    """What a pass found.

    Attributes:
      measures: of the images that could be read.
      index: of these in the set.
      centre_sum: sum over these of the centre token's embedding at unit length, see `anisotropy`.
      unreadable: index and reason of the others.
    """

    measures: Measures
    index: Int[Ndarray, "images"]
    centre_sum: Float[Ndarray, "streams L D"]
    unreadable: Unreadable


@partial(jax.jit, static_argnames="model")
def _step(model: ViT, params, scaling, pixels, regions, there) -> tuple[Measures, Array]:
    """Measures of a batch, and the sum of its centre tokens' directions."""
    images = scaled_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=("attention", *STREAMS))
    special = model.config.prefix_tokens
    batch, _, rows, columns = regions.shape
    flat = regions.reshape(batch, -1, rows * columns)
    place = flat[:, : len(QUERIES)].argmax(-1)  # of equal ones the first
    centre = special + (rows // 2) * columns + columns // 2
    found, directions = [], []
    for layer in range(model.config.depth):
        block = out["encoder"][f"block{layer:02d}"]
        asked = jnp.take_along_axis(block["attention"], special + place[:, None, :, None], axis=2)
        patches = block["norm"][:, special:].astype(jnp.float32)
        alike = jax.vmap(similarity_preference, (0, 0, None))
        similarity = alike(block["attention"][:, :, special:, special:], patches, jnp.arange(rows * columns))
        found.append((*jax.vmap(attended)(asked, flat, place), similarity))
        tokens = jnp.stack([block[name][:, centre].astype(jnp.float32) for name in STREAMS], axis=1)
        unit = tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        directions.append((unit * there[:, None, None]).sum(0))
    stacked = [jnp.stack(part, axis=1) for part in zip(*found, strict=True)]
    covered = jnp.take_along_axis(flat[:, : len(QUERIES)], place[..., None], axis=-1)[..., 0]
    return Measures(*stacked, flat.mean(-1), place, covered, flat[:, 0].sum(-1)), jnp.stack(directions, axis=1)


def measure_scenes(
    checkpoint: Checkpoint, scenes: Scenes, options: PreferenceOptions, path: Path, settings: Mapping[str, str]
) -> Measured:
    """The whole pass, with a progress bar.

    Args:
      path: file (npz) in which what was done is kept; it is the caller's to remove, once the result is safe.
      settings: what the result depends on, as `scan.settings_of` says.

    Raises:
      QkjaxError: a resolution that the model cannot take, a partial result of other settings, or a file that cannot
        be written.
      KeyboardInterrupt: between two batches; what was done is kept.
    """
    size, resolution = batch_size(options.batch), resolution_of(checkpoint, options.resolution)
    config = checkpoint.config
    groups = batch_groups(len(scenes), size)
    state = _resume(path, settings) or _State(0, [], np.zeros((len(STREAMS), config.depth, config.width)), ())
    split, whole = over_devices(0), over_devices(None)
    params, scale = jax.device_put((checkpoint.params, scaling(checkpoint)), whole)
    model = ViT(config, options.dtype)
    left, done = groups[state.done :], sum(map(len, groups[: state.done]))
    made = scene_batches(scenes, left, size, checkpoint.preprocess, resolution, config.patch_size)

    def step(state: _State, batch: SceneBatch) -> _State:
        there = batch.index >= 0
        arrays = jax.device_put((batch.pixels, batch.regions, there.astype(np.float32)), split)
        measures, centre = jax.device_get(_step(model, params, scale, *arrays))
        rows = jax.tree.map(lambda leaf: leaf[there], measures), batch.index[there]
        unreadable = (*state.unreadable, *batch.unreadable)
        return _State(state.done + 1, [*state.rows, rows], state.centre + centre, unreadable)

    work = ((len(group), batch) for group, batch in zip(left, made, strict=True))
    state = go_through(state, work, step, lambda state: _save(path, settings, state), len(scenes), done)
    return Measured(*_together(state.rows), state.centre, state.unreadable)


class _State(NamedTuple):
    """Batches done, and what they gave: measures and indices of each. Always taken as a whole."""

    done: int
    rows: list[tuple[Measures, np.ndarray]]
    centre: np.ndarray
    unreadable: Unreadable


def _together(rows: list[tuple[Measures, np.ndarray]]) -> tuple[Measures, np.ndarray]:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def _save(path: Path, settings: Mapping[str, str], state: _State) -> None:
    arrays = {"done": np.array(state.done), "centre": state.centre}
    if state.rows:
        measures, index = _together(state.rows)
        arrays |= {**measures._asdict(), "index": index}
    write_unfinished(path, settings, arrays, state.unreadable)


def _resume(path: Path, settings: Mapping[str, str]) -> _State | None:
    """Where an unfinished pass stands; None without one."""
    found = read_unfinished(path, settings)
    if found is None:
        return None
    arrays, unreadable = found
    rows = [(Measures(*(arrays[name] for name in Measures._fields)), arrays["index"])] if "index" in arrays else []
    return _State(int(arrays["done"]), rows, arrays["centre"], unreadable)


def anisotropy(centre_sum: Float[Ndarray, "streams L D"], images: int) -> Float[Ndarray, "streams L"]:
    """Mean cosine between the centre tokens' embeddings of two different images (the paper, figure S4).

    Of n unit vectors x, the mean of x_i . x_j over i != j is (|sum x|^2 - n) / (n (n - 1)); NaN for one image.
    """
    if images < 2:
        return np.full(centre_sum.shape[:2], np.nan)
    return ((centre_sum**2).sum(-1) - images) / (images * (images - 1))
