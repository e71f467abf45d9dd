"""What runs learn: images and labels, split by a seed, in an order that depends on the step alone."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from qkjax.errors import QkjaxError

VALIDATION = 5  # one of so many images


class Labelled(NamedTuple):
    """Images in -1..1 and the numbers of their classes."""

    images: Float[np.ndarray, "count height width channels"]
    labels: Int32[np.ndarray, "count"]


class Task(NamedTuple):
    """What is learned from, what it is tried on, and how many classes there are."""

    train: Labelled
    validation: Labelled
    classes: int


def load_task(name: str, seed: int) -> Task:
    """A task by its name: "digits".

    Raises:
      QkjaxError: there is none of this name, or scikit-learn is not installed.
    """
    if name != "digits":
        raise QkjaxError(f"there is no task {name!r}; there is digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise QkjaxError("digits come with scikit-learn, which is not here: pip install 'qkjax[train]'") from error
    found = load_digits()
    images = (found.images[..., None] / 8 - 1).astype(np.float32)  # their values run from 0 to 16
    return _split(Labelled(images, found.target.astype(np.int32)), seed, classes=10)


def _split(data: Labelled, seed: int, classes: int) -> Task:
    order = np.random.default_rng(seed).permutation(len(data.labels))
    held_out = len(order) // VALIDATION
    parts = [Labelled(*(values[chosen] for values in data)) for chosen in (order[held_out:], order[:held_out])]
    return Task(*parts, classes)


def training_batches(data: Labelled, batch: int, shift: int, seed: int):
    """Batches by the number of the step: `batches[step]` is always the same one, so that a run resumes at any.

    Every image comes once before any comes twice. Each is moved by up to `shift` pixels either way; what
    moves in is the darkest value.

    Returns:
      A grain `MapDataset` of (images, labels).
    """
    try:
        import grain
    except ImportError as error:
        raise QkjaxError("training needs grain, which is not here: pip install 'qkjax[train]'") from error

    def move(index: int, rng: np.random.Generator):
        down, right = rng.integers(-shift, shift + 1, size=2)
        padded = np.pad(data.images[index], ((shift, shift), (shift, shift), (0, 0)), constant_values=-1.0)
        height, width, _ = data.images[index].shape
        moved = padded[shift - down : shift - down + height, shift - right : shift - right + width]
        return moved, data.labels[index]

    numbers = grain.MapDataset.source(range(len(data.labels))).seed(seed).shuffle().repeat()
    return numbers.random_map(move).batch(batch)
