"""Batches of what runs learn, in an order that depends on the seed and the step alone."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from qkjax.errors import QkjaxError
from qkjax.train.augment import mixup
from qkjax.train.config import TrainConfig

PADDING = -1  # the label of what fills up a batch
THREADS = 2 * (os.cpu_count() or 1)  # that make images ahead of the model
TRIES = 10  # images in a row that cannot be read before a run gives up

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
      fingerprint: changes when the data set does, where it can.
    """

    train: Examples
    held_out: Examples
    classes: int
    pixels: tuple[int, int, int]
    vary: Callable[..., Image]
    fit: Callable[..., Image]
    fingerprint: str = ""


def training_batches(
    task: Task, config: TrainConfig, start: int = 0, host: int = 0, hosts: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This host's rows of the batches of the steps from `start` to the last: each is always the same, so that a run
    goes on at any. Every image comes once before any comes twice. Made by threads before they are asked for.

    Yields:
      Images, and targets (rows, classes) that are 1 for an image's class, or mixed.

    Raises:
      QkjaxError: grain is not installed.
    """
    grain, rows = _grain(), config.batch // hosts

    def example(number: int, rng: np.random.Generator):
        image, label = _readable(task.train, number)
        target = np.zeros(task.classes, np.float32)
        target[label] = 1
        return task.vary(image, rng), target

    numbers = grain.MapDataset.source(range(len(task.train))).seed(config.seed).shuffle().repeat()
    examples = numbers.random_map(example)
    mine = grain.MapDataset.range(start * rows, config.steps * rows).map(
        lambda own: examples[_of_all(own, config.batch, host, hosts)]
    )
    for step, batch in enumerate(_ahead(mine, rows), start=start):
        if config.mixup:
            # One share for all hosts; pairs are of one host.
            batch = mixup(*batch, config.mixup, np.random.default_rng([config.seed, step]))  # noqa: PLW2901
        yield batch


def held_out_batches(task: Task, batch: int, host: int = 0, hosts: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This host's rows of batches of what the model is tried on: images, and labels, which are `PADDING` where
    the last batch is filled up. Made by threads ahead, as those of training."""
    grain, rows, count = _grain(), batch // hosts, len(task.held_out)
    nothing = np.zeros(task.pixels, np.float32), np.int32(PADDING)

    def example(own: int):
        number = _of_all(own, batch, host, hosts)
        if number >= count:
            return nothing
        image, label = task.held_out[number]
        return task.fit(image), np.int32(label)

    return _ahead(grain.MapDataset.range(-(-count // batch) * rows).map(example), rows)


def _of_all(own: int, batch: int, host: int, hosts: int) -> int:
    """The number among all hosts' images of this host's image number `own`: each has some rows of every batch."""
    rows = batch // hosts
    return own // rows * batch + host * rows + own % rows


def _grain():
    try:
        import grain
    except ImportError as error:
        raise QkjaxError("training needs grain, which is not here: pip install 'qkjax[train]'") from error
    return grain


def _ahead(examples, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of so many rows of a `MapDataset`, in order, up to two of them made ahead by threads."""
    options = _grain().ReadOptions(num_threads=min(THREADS, 2 * rows), prefetch_buffer_size=2 * rows)
    return iter(examples.to_iter_dataset(options).batch(rows))


def _readable(examples: Examples, number: int) -> tuple:
    """An example, or the next one that can be read: a broken picture among a million stops no run."""
    for other in range(number, number + TRIES):
        try:
            return examples[other % len(examples)]
        except QkjaxError as error:
            print(f"passed over while training: {error}", file=sys.stderr)
            last = error
    raise last
