"""What can be learned, by name: digits, generated odd-one-out images, folders of photographs by class, data sets of
TensorFlow Datasets and of Hugging Face."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.labels import by_folder
from qkjax.images.preprocess import PRESETS, normalise, preprocess
from qkjax.images.sources import ImageSet, open_images
from qkjax.train.augment import inception_crop, moved, rand_augment
from qkjax.train.config import TrainConfig
from qkjax.train.data import Examples, Image, Task
from qkjax.train.odd_one_out import CELL, CELLS, CLASSES, OddOneOut

HELD_OUT = 5  # one of so many, where a data set does not say itself
GENERATED = 1_000_000, 2_000  # odd-one-out images to learn from, and to be tried on
TRAIN, TRIED = ("train", "training"), ("validation", "val", "valid", "test")
PRESET = PRESETS["bigvision-small-crop"]
Found = tuple[Examples, Examples, int, str]  # to learn from, to be tried on, how many classes, fingerprint


def load_task(config: TrainConfig) -> Task:
    """The task that a run names.

    Raises:
      QkjaxError: there is none of this name, or it cannot be read, or what it needs is not installed.
    """
    name = config.data
    if name in TASKS:
        return TASKS[name](config)
    kind, _, rest = name.partition(":")
    if kind in SOURCES and rest:
        return _photographs(*SOURCES[kind](rest, config.seed), config)
    if Path(name).is_dir():
        return _photographs(*_class_folders(Path(name), config.seed), config)
    raise QkjaxError(
        f"there is no task {name!r}; there is {', '.join(TASKS)}, a folder with one of photographs for each class, "
        "tfds:NAME or hf:NAME"
    )


def _digits(config: TrainConfig) -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise QkjaxError("digits come with scikit-learn, which is not here: pip install 'qkjax[train]'") from error
    found = load_digits()
    images = (found.images[..., None] / 8 - 1).astype(np.float32)  # their values run from 0 to 16
    examples = [(image, int(label)) for image, label in zip(images, found.target, strict=True)]

    if config.shift >= images.shape[1]:
        raise QkjaxError(f"shift is {config.shift}, and digits have {images.shape[1]} pixels: give less")

    def vary(image: Image, rng: np.random.Generator) -> Image:
        down, right = rng.integers(-config.shift, config.shift + 1, size=2)
        return moved(image, int(down), int(right))

    return Task(*_split(examples, config.seed), 10, images.shape[1:], vary, fit=lambda image: image)


def _odd_one_out(config: TrainConfig) -> Task:
    parts = [OddOneOut(count, config.seed, part) for part, count in enumerate(GENERATED)]
    side = CELLS * CELL
    return Task(*parts, CLASSES, (side, side, 3), vary=lambda image, _: image, fit=lambda image: image)


TASKS: dict[str, Callable[[TrainConfig], Task]] = {"digits": _digits, "odd-one-out": _odd_one_out}


def _photographs(train: Examples, held_out: Examples, classes: int, fingerprint: str, config: TrainConfig) -> Task:
    """Cut, mirrored and distorted for training; for trying as big_vision does: the small side resized, the middle cut
    out."""
    side = config.resolution

    def vary(image: "PIL.Image.Image", rng: np.random.Generator) -> Image:
        image = inception_crop(image, side, rng)
        pixels = np.asarray(rand_augment(image, config.rand_augment, config.rand_level, rng))
        return normalise(pixels[:, ::-1] if rng.random() < 0.5 else pixels, PRESET)

    def fit(image: "PIL.Image.Image") -> Image:
        return preprocess(image, PRESET, side)

    return Task(train, held_out, classes, (side, side, 3), vary, fit, fingerprint)


@dataclass(frozen=True)
class _Chosen:
    """Examples of a set by their numbers in it."""

    of: Examples
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int):
        return self.of[int(self.numbers[index])]


def _split(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """What is learned from, and every fifth, drawn by the seed, to be tried on."""
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = len(order) // HELD_OUT
    if not held_out:
        raise QkjaxError(f"{len(examples)} images are too few to hold out one of {HELD_OUT} to be tried on")
    return _Chosen(examples, order[held_out:]), _Chosen(examples, order[:held_out])


@dataclass(frozen=True)
class _Labelled:
    """Photographs of a set, read when they are asked for, with the numbers of their classes."""

    images: ImageSet
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images.read(index), self.labels[index]


def _class_folders(path: Path, seed: int) -> Found:
    """ImageNet's layout: a folder for each class, in folders train and val or without them; in a zip or tar too."""
    parts = {names: next((path / n for n in names if (path / n).is_dir()), None) for names in (TRAIN, TRIED)}
    if None in parts.values():
        images = open_images(path)
        labels, classes = by_folder(path, images)
        return *_split(_Labelled(images, labels), seed), len(classes), images.fingerprint
    found = [open_images(part) for part in parts.values()]
    (labels, classes), (tried, others) = (by_folder(path, images) for images in found)
    if others != classes:
        odd = sorted(set(others) ^ set(classes))[0]
        raise QkjaxError(f"{path} has the class {odd} in only one of its folders to learn from and to be tried on")
    fingerprint = " ".join(images.fingerprint for images in found)
    return *(_Labelled(*pair) for pair in zip(found, (labels, tried), strict=True)), len(classes), fingerprint


@dataclass(frozen=True)
class _Decoded:
    """Rows, by index, of a data set that decodes images itself; under which names they have image and label."""

    rows: Any
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        from PIL import Image

        row = self.rows[index]
        image = row[self.image]
        if row[self.label] < 0:
            raise QkjaxError(f"image {index} of the data set has no label: choose a data set with labels")
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return image.convert("RGB"), int(row[self.label])


def _tfds(name: str, seed: int) -> Found:
    """A data set of TensorFlow Datasets, prepared as array_record; TensorFlow itself is not needed to read it."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise QkjaxError("this needs TensorFlow Datasets: pip install tensorflow-datasets array_record") from error
    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        parts = {split: builder.as_data_source(split) for split in builder.info.splits}
        features = builder.info.features
        names = _columns(features, tfds.features.Image, tfds.features.ClassLabel)
    except Exception as error:  # the library raises whatever its parts do
        raise QkjaxError(f"cannot read {name} with TensorFlow Datasets: {_first_line(error)}") from error
    return *_parts(parts, names, name, seed), features[names[1]].num_classes, _lengths(parts, builder.info.full_name)


def _hugging_face(name: str, seed: int) -> Found:
    """A data set of the Hugging Face hub, or of a local folder that its library reads; NAME:CONFIG chooses one."""
    try:
        import datasets
    except ImportError as error:
        raise QkjaxError("this needs Hugging Face's library: pip install datasets") from error
    repository, _, config = name.partition(":")
    try:
        parts = datasets.load_dataset(repository, config or None)
        features = next(iter(parts.values())).features
        names = _columns(features, datasets.Image, datasets.ClassLabel)
    except Exception as error:  # the library raises whatever its parts do
        raise QkjaxError(f"cannot read {name} with Hugging Face's datasets: {_first_line(error)}") from error
    return *_parts(parts, names, name, seed), features[names[1]].num_classes, _lengths(parts, name)


SOURCES: dict[str, Callable[[str, int], Found]] = {"tfds": _tfds, "hf": _hugging_face}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _lengths(parts, name: str) -> str:
    return f"{name} {sorted((part, len(rows)) for part, rows in parts.items())}"


def _columns(features, *kinds: type) -> tuple[str, ...]:
    """The first column of each kind.

    Raises:
      ValueError: there is none.
    """
    found = [next((name for name, feature in features.items() if isinstance(feature, kind)), None) for kind in kinds]
    if None in found:
        raise ValueError(f"it has no column of images and one of class labels, but {', '.join(features)}")
    return tuple(found)


def _parts(parts, columns: tuple[str, ...], name: str, seed: int) -> tuple[Examples, Examples]:
    """What a data set says is to be learned from and to be tried on; where it has only the first, a split of it."""
    train, tried = (next((part for part in names if part in parts), None) for names in (TRAIN, TRIED))
    if train is None:
        raise QkjaxError(f"{name} has no part train, but {', '.join(parts)}")
    learned = _Decoded(parts[train], *columns)
    return (learned, _Decoded(parts[tried], *columns)) if tried else _split(learned, seed)
