"""Splits a data set into training and held-out examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.sources import ImageSet
from qkjax.train.data import Examples

HELD_OUT = 5  # one in HELD_OUT images is held out if a data set has no validation part


@dataclass(frozen=True)
class Subset:
    """A subset of a sequence of examples, given by indices."""

    examples: Examples
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.examples[int(self.indices[index])]


def split(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Splits examples into training and held-out examples. The seed determines a random fifth, which is held out."""
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = len(order) // HELD_OUT
    if not held_out:
        raise QkjaxError(
            f"found {len(examples)} images: expected at least {HELD_OUT}, because one image in {HELD_OUT} is held out"
        )
    return Subset(examples, order[held_out:]), Subset(examples, order[:held_out])


@dataclass(frozen=True)
class Labelled:
    """The photographs of an image set and the indices of their classes. Each photograph is read when it is accessed."""

    images: ImageSet
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images.read(index), self.labels[index]


def largest_class(examples: Examples) -> float | None:
    """The share of examples in the most frequent class, or None if labels cannot be read without the images."""
    labels = _labels(examples)
    return None if labels is None else float(np.bincount(labels).max() / len(labels))


def _labels(examples: Examples) -> np.ndarray | None:
    match examples:
        case Subset(parent, indices):
            labels = _labels(parent)
            return None if labels is None else labels[indices]
        case Labelled(_, labels):
            return np.asarray(labels)
        case list():
            return np.array([label for _, label in examples])
    return None
