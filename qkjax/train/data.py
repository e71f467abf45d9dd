"""Batches of what runs learn, in an order that depends on the seed and the step alone."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError
from qkjax.train.augment import mixup
from qkjax.train.config import TrainConfig

PADDING = -1  # the label of what fills up a batch
THREADS = 8  # that make batches, each one ahead of the model

Image = Float[np.ndarray, "height width channels"]


@runtime_checkable
class Examples(Protocol):
    """Images with the numbers of their classes, by index: an array as the model takes it, or a picture."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> tuple:
        """(image, number of its class)."""
        ...


class Task(NamedTuple):
    """What is learned.

    Attributes:
      train, held_out: images with the numbers of their classes, each asked for by its index.
      classes: how many there are.
      pixels: height, width and channels of an image as the model takes it.
      vary: an image of `train` as the model takes it, in -1..1, changed as a generator says.
      fit: an image of `held_out` as the model takes it.
    """

    train: Examples
    held_out: Examples
    classes: int
    pixels: tuple[int, int, int]
    vary: Callable[..., Image]
    fit: Callable[..., Image]


def training_batches(task: Task, config: TrainConfig, host: int = 0, hosts: int = 1):
    """This host's rows of every batch, by the number of the step: `batches[step]` is always the same, so that
    a run resumes at any. Every image comes once before any comes twice.

    Returns:
      A grain `MapDataset` of (images, targets): targets (rows, classes) are 1 for an image's class.
    """
    try:
        import grain
    except ImportError as error:
        raise QkjaxError("training needs grain, which is not here: pip install 'qkjax[train]'") from error

    def example(index: int, rng: np.random.Generator):
        image, label = task.train[index]
        target = np.zeros(task.classes, np.float32)
        target[label] = 1
        return task.vary(image, rng), target

    numbers = grain.MapDataset.source(range(len(task.train))).seed(config.seed).shuffle().repeat()
    batches = numbers.random_map(example).batch(config.batch // hosts)
    if config.mixup:
        batches = batches.random_map(lambda batch, rng: mixup(*batch, config.mixup, rng))
    return batches[host::hosts]


def ahead(batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of a `MapDataset` in their order, made by threads before they are asked for."""
    import grain

    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)))


def held_out_batches(task: Task, batch: int, host: int = 0, hosts: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This host's rows of batches of what the model is tried on: images, and labels, which are `PADDING` where
    the last batch is filled up. Made by threads ahead, as those of training."""
    import grain

    rows, count = batch // hosts, len(task.held_out)

    def stack(number: int):
        images = np.zeros((rows, *task.pixels), np.float32)
        labels = np.full(rows, PADDING, np.int32)
        first = number * batch + host * rows
        for row, index in enumerate(range(first, min(first + rows, count))):
            image, labels[row] = task.held_out[index]
            images[row] = task.fit(image)
        return images, labels

    return ahead(grain.MapDataset.source(range(-(-count // batch))).map(stack))
