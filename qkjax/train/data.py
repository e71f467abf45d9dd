"""Yields training and validation batches, in an order that depends only on the seed and on the step."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from qkjax.cores import cores
from qkjax.errors import QkjaxError
from qkjax.images.memory import PIXELS, UNPACKED
from qkjax.images.preprocess import PRESETS
from qkjax.train.augment import mixup_weight
from qkjax.train.config import TrainConfig

PRESET = PRESETS["bigvision-small-crop"]  # preprocessing of photographs
PADDING = -1  # label of the rows that pad the last batch
THREADS = 2 * cores()  # number of threads that prepare images in advance
TRIES = 10  # a run stops after this number of consecutive unreadable images
log = logging.getLogger(__name__)

Image = Float[np.ndarray, "height width channels"] | UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class Examples(Protocol):
    """Protocol for a sequence of pairs: an image (an array or a Pillow image) and the index of its class."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> tuple:
        """The image with this index, and the index of its class."""
        ...


class Task(NamedTuple):
    """A classification task.

    Attributes:
      train, held_out: training images and held-out images, with the indices of their classes.
      classes: number of classes.
      pixels: height, width and channels of the model's input.
      augment: function that takes an image of `train` and a random generator, and returns a randomly augmented image
        of the size of the model's input: pixels from 0 to 255 (uint8), or numbers from -1 to 1 (float32).
      fit: function that takes an image of `held_out`, and returns an image of the same size and type.
      fingerprint: string that changes when the data set changes; "" for a data set that cannot change.
      largest_class: share of the held-out images in the most frequent class, which is the accuracy of always
        answering this class; None if the labels cannot be read without the images.
      dtype: type of the images that `augment` and `fit` return. Images in uint8 are normalised on the device.
    """

    train: Examples
    held_out: Examples
    classes: int
    pixels: tuple[int, int, int]
    augment: Callable[..., Image]
    fit: Callable[..., Image]
    fingerprint: str = ""
    largest_class: float | None = None
    dtype: type = np.float32


def training_batches(
    task: Task, config: TrainConfig, start: int = 0, host: int = 0, hosts: int = 1
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields this host's rows of the training batches, from step `start` to the last step.

    Each batch depends only on the seed and the step, so a run can resume at any step. Every image is used once before
    any image is used twice. Threads prepare the batches in advance, within the limits of `qkjax.images.memory`.

    Args:
      task: the classification task.
      config: configuration of the run.
      start: number of the first step.
      host, hosts: index of this host, and the number of hosts.

    Yields:
      Images (rows, height, width, channels) and labels (rows); with mixup, also the weight of each image (rows), which
      is the same in all rows. The training step mixes the images; see `qkjax.train.step.mixed`.

    Raises:
      QkjaxError: grain is not installed.
    """
    grain, rows = _grain(), config.batch // hosts

    def example(number: int, rng: np.random.Generator):
        with UNPACKED.shared(), PIXELS.shared():
            image, label = _readable(task.train, number)
            return task.augment(image, rng), np.int32(label)

    numbers = grain.MapDataset.source(range(len(task.train))).seed(config.seed).shuffle().repeat()
    examples = numbers.random_map(example)
    own_rows = grain.MapDataset.range(start * rows, config.steps * rows).map(
        lambda own: examples[_global_index(own, config.batch, host, hosts)]
    )
    for step, batch in enumerate(_prefetched(own_rows, rows), start=start):
        if config.mixup:
            weight = mixup_weight(config.mixup, np.random.default_rng([config.seed, step]))  # equal on all hosts
            yield *batch, np.full(rows, weight)
        else:
            yield tuple(batch)


def held_out_batches(task: Task, batch: int, host: int = 0, hosts: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields this host's rows of the batches of held-out images, which threads prepare in advance.

    Args:
      task: the classification task.
      batch: number of rows in a batch, over all hosts.
      host, hosts: index of this host, and the number of hosts.

    Yields:
      Images (rows, height, width, channels) and labels (rows). Rows that pad the last batch have the label `PADDING`.

    Raises:
      QkjaxError: grain is not installed.
    """
    grain, rows, count = _grain(), batch // hosts, len(task.held_out)
    padding = np.zeros(task.pixels, task.dtype), np.int32(PADDING)

    def example(own: int):
        number = _global_index(own, batch, host, hosts)
        if number >= count:
            return padding
        with UNPACKED.shared(), PIXELS.shared():
            image, label = task.held_out[number]
            return task.fit(image), np.int32(label)

    return _prefetched(grain.MapDataset.range(-(-count // batch) * rows).map(example), rows)


def _global_index(own: int, batch: int, host: int, hosts: int) -> int:
    """The index, in the sequence of all hosts, of this host's image number `own`. Each host has rows of every batch."""
    rows = batch // hosts
    return own // rows * batch + host * rows + own % rows


def _grain():
    try:
        import grain
    except ImportError as error:
        raise QkjaxError("training needs grain, which is not installed: pip install 'qkjax[train]'") from error
    return grain


def _prefetched(examples, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of `rows` rows of a grain `MapDataset`, in order. Threads prepare up to two batches in advance."""
    options = _grain().ReadOptions(num_threads=min(THREADS, 2 * rows), prefetch_buffer_size=2 * rows)
    return iter(examples.to_iter_dataset(options).batch(rows))


def _readable(examples: Examples, number: int) -> tuple:
    """The example with this number or, if it is unreadable, the next readable one: damaged files do not stop a run."""
    for other in range(number, number + TRIES):
        try:
            return examples[other % len(examples)]
        except QkjaxError as error:
            log.warning("skipped in training: %s", error)
            last = error
    raise last
