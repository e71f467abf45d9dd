"""One pass over images: for every layer, head, mode and sign the images that excite it most.

What was done is kept in a file as the pass goes on. Interrupted or killed at any moment, the next call
goes on from there, and ends with the very bits that one uninterrupted pass gives: batches are cut by
the images' numbers alone, and each is added to the same state by the same compiled program.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qkjax.activations.project import Stream, project
from qkjax.activations.scores import SCORES, both_signs
from qkjax.activations.top_k import Top, add, empty, merge
from qkjax.errors import QkjaxError
from qkjax.images.prefetch import Batch, batches
from qkjax.images.sources import ImageSet
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import photograph_grid, resolution_of, scaled_pixels, scaling
from qkjax.passes.partial import go_through, read_unfinished, write_unfinished
from qkjax.passes.settings import batch_groups, batch_size, over_devices, settings_of
from qkjax.runtime import hosts
from qkjax.vit.model import ViT
from qkjax.weights.load import Checkpoint


@dataclass(frozen=True)
class ScanOptions:
    """What is looked for.

    Attributes:
      scores: names out of `qkjax.activations.scores.SCORES`.
      top: images kept for each mode, sign and score; no more than there are.
      stream: the tokens that are projected, see `qkjax.activations.project.Stream`.
      batch: images at once, rounded up to a multiple of the devices; None for what is fast: 8 on a CPU,
        whose caches more would overflow, 64 a device elsewhere.
      resolution: (height, width) of the images in pixels; None for the checkpoint's own.
      dtype: of the forward pass; projections and scores are float32.
    """

    scores: tuple[str, ...] = ("product",)
    top: int = 9
    stream: Stream = "norm"
    batch: int | None = None
    resolution: tuple[int, int] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Scan(NamedTuple):
    """What one pass found.

    Attributes:
      top: score and image, (scores, layers, heads, modes, 2, k); the first sign is that of `Modes`.
      unreadable: index and reason of the images that could not be read, by index.
      settings: what the result depends on, see `settings_of`.
    """

    top: Top
    unreadable: tuple[tuple[int, str], ...]
    settings: Mapping[str, str]


@partial(jax.jit, static_argnames=("model", "stream", "scores"), donate_argnames="top")
def _step(model: ViT, params, modes: Modes, scaling, top: Top, pixels, index, stream: Stream, scores: tuple[str, ...]):
    """The top images with one more batch: forward pass, projections, scores. They take the place of the old ones.

    Nothing else can be given away: no result has the shape of the pixels.
    """
    images = scaled_pixels(pixels, scaling)
    _, out = model.apply({"params": params}, images, capture=(stream,))
    found = []
    for layer in range(model.config.depth):
        tokens = out["encoder"][f"block{layer:02d}"][stream][:, model.config.prefix_tokens :]
        maps = project(tokens, modes.u[layer], modes.v[layer])
        found.append(jnp.stack([both_signs(name, maps[:, :, 0], maps[:, :, 1]) for name in scores], axis=1))
    return add(top, jnp.stack(found, axis=2), index)


class Scanner:
    """A model and its modes on all devices of this host, ready to take batches."""

    def __init__(self, checkpoint: Checkpoint, modes: Modes, options: ScanOptions):
        self._split, self._whole = over_devices(0), over_devices(None)
        self._held = jax.device_put((checkpoint.params, Modes(*modes), scaling(checkpoint)), self._whole)
        self._model = ViT(checkpoint.config, options.dtype)
        self._options = options

    def step(self, top: Top, pixels: np.ndarray, index: np.ndarray) -> Top:
        """The top images with one more batch, on its way: it is there once it is looked at. Uses up the old ones."""
        o = self._options
        pixels, index = jax.device_put((pixels, index), self._split)
        top = jax.device_put(top, self._whole)  # or the first step would be compiled apart from the others
        return _step(self._model, *self._held, top, pixels, index, stream=o.stream, scores=o.scores)


def scan_images(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    path: Path,
    settings: Mapping[str, str] | None = None,
) -> Scan:
    """The images that excite each mode most, in one pass.

    With `jax.distributed` each process scans its share of the batches, and all get the whole result.

    Args:
      modes: of the checkpoint, in the plain frame (no folding).
      path: file (npz) in which what was done is kept as the pass goes on; each process has its own. It is
        the caller's to remove, once the result is safe.
      settings: what `settings_of` says, where that is known already.

    Raises:
      QkjaxError: an unknown score or no images wanted, a resolution that the model cannot take, a
        partial result of other settings, processes that see different images or models, or a file that
        cannot be written.
      KeyboardInterrupt: between two batches; what was done is kept.
    """
    check(checkpoint, options)
    settings = settings or settings_of(checkpoint, images, options)
    process, processes = jax.process_index(), jax.process_count()
    if processes > 1:
        hosts.agree(settings)
    own = {**settings, "process": f"{process} of {processes}"}
    size, resolution = batch_size(options.batch), resolution_of(checkpoint, options.resolution)
    groups = batch_groups(len(images), size)[process::processes]
    state = _resume(path, own) or _nothing_yet(modes, options, len(images))
    scanner = Scanner(checkpoint, modes, options)
    left, done = groups[state.done :], groups[: state.done]
    made = batches(images, left, size, checkpoint.preprocess, resolution)

    def step(state: _State, batch: Batch) -> _State:
        # Threads decode the next batches meanwhile. Without waiting, steps would queue up with their pixels.
        top = jax.block_until_ready(scanner.step(state.top, batch.pixels, batch.index))
        return _State(state.done + 1, top, (*state.unreadable, *batch.unreadable))

    work = ((len(group), batch) for group, batch in zip(left, made, strict=True))
    total = sum(map(len, groups))
    state = go_through(state, work, step, lambda state: _save(path, own, state), total, sum(map(len, done)))
    top, unreadable = state.top, state.unreadable
    if processes > 1:
        top = merge(Top(*hosts.gather(tuple(top))))
        unreadable = [item for items in hosts.gather_json(unreadable) for item in items]
    return Scan(Top(*map(np.asarray, top)), tuple(sorted((int(i), reason) for i, reason in unreadable)), settings)


class _State(NamedTuple):
    """Batches done, and what they gave. Always taken as a whole, so that no batch counts twice."""

    done: int
    top: Top
    unreadable: tuple[tuple[int, str], ...]


def _nothing_yet(modes: Modes, options: ScanOptions, images: int) -> _State:
    layers, heads, _, rank = modes.u.shape
    k = min(options.top, images)  # more there cannot be
    return _State(0, empty((len(options.scores), layers, heads, rank, 2), k), ())


def check(checkpoint: Checkpoint, options: ScanOptions) -> tuple[int, int]:
    """Whether a scan with these options can be; the rows and columns of patches that it has.

    Raises:
      QkjaxError: an unknown score, nothing wanted, or a resolution or pictures that the model cannot take.
    """
    if unknown := set(options.scores) - set(SCORES):
        raise QkjaxError(f"there is no score {min(unknown)!r}; there are {', '.join(SCORES)}")
    if min(options.top, len(options.scores), 1 if options.batch is None else options.batch) < 1:
        raise QkjaxError("top, batch and the number of scores are whole numbers from 1 up")
    return photograph_grid(checkpoint, options.resolution)


def _save(path: Path, settings: Mapping[str, str], state: _State) -> None:
    write_unfinished(
        path,
        settings,
        {"done": np.array(state.done), "score": np.asarray(state.top.score), "image": np.asarray(state.top.image)},
        state.unreadable,
    )


def _resume(path: Path, settings: Mapping[str, str]) -> _State | None:
    """Where an unfinished scan stands; None without one."""
    found = read_unfinished(path, settings)
    if found is None:
        return None
    arrays, unreadable = found
    return _State(int(arrays["done"]), Top(jnp.asarray(arrays["score"]), jnp.asarray(arrays["image"])), unreadable)
