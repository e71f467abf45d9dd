"""Runs passes over a set of images: one pass of the original model, and one pass for each edit."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, UInt8
from tqdm import tqdm

from qkjax.analyses.ablate.outputs import Directions, Effects, Outputs, edited_outputs, original_outputs
from qkjax.analyses.usable import require_finite, require_readable
from qkjax.analyses.wide_heads import scaled, wide_columns, widened
from qkjax.images.sets import Batch, ImageSet, Unreadable
from qkjax.interaction.dose import Sizes
from qkjax.interaction.edit import EditedHeads
from qkjax.passes.engine import Rows, batch_groups, run_pass
from qkjax.passes.inputs import batches_of_photographs, scaling, whole_grid
from qkjax.passes.options import PassOptions, batch_size
from qkjax.runtime.devices import free_bytes, over_devices
from qkjax.vit.model import ViT
from qkjax.vit.patches import query_places
from qkjax.weights.checkpoint import Checkpoint

WHOLE = "preference for similar tokens compares each patch with all others"
"""Why ablations need attention to the whole image."""


class _OriginalBatch(NamedTuple):
    """A batch of images with the outputs of the original model, which `run_pass` gives to the edited model."""

    pixels: UInt8[Array | np.ndarray, "batch height width 3"]
    index: np.ndarray
    unreadable: Unreadable
    original: Outputs


class Ablator:
    """Runs a model and its edits over a set of images.

    The images and the outputs of the original model stay in memory: 1.5 MB per image for ViT-S/14 at 224 pixels
    (layers x heads x (queries + 1) x tokens x 4 bytes, and the pixels). On an accelerator, as many images and outputs
    as fit into half of its free memory stay on the device. With several hosts, each host keeps only its own share of
    the images.

    Attributes:
      original: arrays with one row per image for the original model, compared with itself: the effects,
        "representation", and "logits" if the model has a classifier.
      index: indices in the image set of the images that could be read.
      unreadable: index and reason for each image that could not be read.
      pixels: a hash of the pixels of all images.
      sizes: the sizes of edits in the measure "logits", averaged over the images (see `qkjax.interaction.dose`); None
        if no directions are given.
      columns: number of columns that the kernels of edited heads need; None if it is the model's head_dim.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: ImageSet,
        queries: int,
        exact: bool,
        options: PassOptions,
        settings: Mapping[str, str],
        bar: tqdm,
        directions: Directions | None = None,
    ):
        """Runs the original model over the images, and keeps its outputs.

        Args:
          checkpoint: the original model.
          images: the image set.
          queries, exact, options: see the arguments of `ablate`.
          settings: the settings on which the outputs depend.
          bar: a progress bar.
          directions: modes and key directions of the original model, from which `sizes` are computed.

        Raises:
          QkjaxError: the model does not support the resolution, `queries` is below 1, or no image can be read.
        """
        self._places = query_places(whole_grid(checkpoint, options.resolution, WHOLE), queries)
        self._split, self._whole = over_devices(0), over_devices(None)
        self._checkpoint, self._exact, self._settings, self._bar = checkpoint, exact, settings, bar
        base = widened(checkpoint, wide_columns(checkpoint)) if exact else checkpoint
        self._model = ViT(base.config, options.dtype)
        self._scaling = jax.device_put(scaling(checkpoint.preprocess), self._whole)
        self._params = jax.device_put(base.params, self._whole)
        self._groups = batch_groups(len(images), batch_size(options.batch))
        self._batches: list[_OriginalBatch] = []
        self._room = free_bytes() // 2
        self._run_original(checkpoint, images, options, directions)

    def _run_original(
        self, checkpoint: Checkpoint, images: ImageSet, options: PassOptions, directions: Directions | None
    ) -> None:
        directions = None if directions is None else jax.device_put(directions, self._whole)
        params = jax.device_put(checkpoint.params, self._whole) if self._exact else self._params
        model = ViT(checkpoint.config, options.dtype)

        def step(state: tuple, batch: Batch) -> tuple[tuple, Rows]:
            pixels, present = jax.device_put((batch.pixels, batch.index >= 0), self._split)
            args = model, params, self._scaling, pixels, self._places, present, directions
            outputs, effects, sizes = original_outputs(*args)
            self._keep(_OriginalBatch(pixels, batch.index, (), outputs))
            digest = np.frombuffer(blake2b(batch.pixels, digest_size=16).digest(), np.uint8)
            rows = _rows(batch.index, *jax.device_get((effects, outputs.representation, outputs.logits)))
            if sizes is not None:  # summed in float64
                state = tuple(total + np.asarray(x, np.float64) for total, x in zip(state, sizes, strict=True))
            return state, rows | {"index": batch.index[batch.index >= 0], "digest": digest[None]}

        batches = batches_of_photographs(checkpoint, images, options)
        zeros = () if directions is None else _zero_sizes(directions)
        result = run_pass(step, zeros, self._groups, batches, None, self._settings, merge=_sum, bar=self._bar)
        require_readable(result.unreadable, images, None)
        self.pixels = blake2b(result.rows.pop("digest").tobytes(), digest_size=16).hexdigest()
        self.index = result.rows.pop("index")
        self.unreadable, self.original = result.unreadable, result.rows
        require_finite(_always_finite(self.original), images.name)
        self.sizes = Sizes(*((x / len(self.index)).astype(np.float32) for x in result.state)) if directions else None
        if self.sizes is not None:
            require_finite({"sizes of modes in the attention logits": self.sizes.modes}, images.name)

    def _keep(self, batch: _OriginalBatch) -> None:
        """Keeps a batch for the passes of the edits: on the devices if there is space, else in host memory."""
        size = (
            sum(array.nbytes for array in jax.tree.leaves((batch.pixels, batch.original))) // jax.local_device_count()
        )
        if size > self._room:
            pixels, original = jax.device_get((batch.pixels, batch.original))
            batch = batch._replace(pixels=pixels, original=original)
        else:
            self._room -= size
        self._batches.append(batch)

    def ablate(self, heads: EditedHeads, path: Path | None, settings: Mapping[str, str]) -> Rows:
        """Runs an edited model over the images.

        Args:
          heads: kernels and biases from `qkjax.interaction.edit.edit`, computed with the argument `columns` of this
            object.
          path: file in which progress is saved; if None, progress is not saved.
          settings: the settings on which the result depends.

        Returns:
          Arrays with one row per image, under the same names as in `original`.
        """
        heads = scaled(heads, self._checkpoint) if self._exact else heads
        heads = jax.device_put(heads, self._whole)

        def step(state: tuple, batch: _OriginalBatch) -> tuple[tuple, Callable[[], Rows]]:
            pixels, original = jax.device_put((batch.pixels, batch.original), self._split)
            args = self._params, heads, self._scaling, pixels, self._places, original
            outputs = edited_outputs(self._model, *args)
            return state, lambda: _rows(batch.index, *jax.device_get(outputs))

        def batches(groups: Sequence) -> Sequence[_OriginalBatch]:
            return self._batches[len(self._batches) - len(groups) :]

        rows = run_pass(step, (), self._groups, batches, path, settings, bar=self._bar).rows
        require_finite(_always_finite(rows), "an edited model", path)
        return rows

    @property
    def columns(self) -> int | None:
        """Number of columns that the kernels of edited heads need, as an argument of `interaction.edit.edit`."""
        return wide_columns(self._checkpoint) if self._exact else None


def _sum(states: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(sum(arrays) for arrays in zip(*states, strict=True))


def _zero_sizes(directions: Directions) -> tuple[np.ndarray, ...]:
    """Sizes of 0, to which the sizes of each batch are added."""
    layers, heads, rank = np.shape(directions.s)
    shapes = [(layers, heads, rank, rank)] * 2 + [(layers, heads)] * 3
    return tuple(np.zeros(shape) for shape in shapes)


def _rows(index: np.ndarray, effects: Effects, representation: np.ndarray, logits: np.ndarray | None) -> Rows:
    """Arrays with one row per image of a batch, without the images that could not be read."""
    rows = effects._asdict() | {"representation": representation}
    rows |= {} if logits is None else {"logits": logits}
    return {name: np.asarray(value)[index >= 0] for name, value in rows.items()}


def _always_finite(rows: Rows) -> Rows:
    """Rows that are finite for every model; others are NaN for a model without a class token or a classifier."""
    with np.errstate(over="ignore"):
        values = {"lengths of the representations": np.linalg.norm(rows["representation"], axis=-1)}
    return values | {name: rows[name] for name in ("attention_js", "attention_entropy", "preference")}
