"""Loads classification tasks by name.

A task is "digits", "odd-one-out" (generated images), a folder that contains one folder of images per class, or a data
set of TensorFlow Datasets or Hugging Face.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qkjax.errors import QkjaxError, first_line
from qkjax.images.fingerprint import digest_of, part_of_file
from qkjax.images.labels import by_folder
from qkjax.images.preprocess import picture
from qkjax.images.sets import ImageSet
from qkjax.images.sources import as_text, files_in, open_images
from qkjax.train.augment import inception_crop, rand_augment, shift_image
from qkjax.train.config import TrainConfig
from qkjax.train.data import PRESET, Examples, Image, Task
from qkjax.train.odd_one_out import CELL, CELLS, CLASSES, OddOneOut
from qkjax.train.splits import Labelled, largest_class, split

log = logging.getLogger(__name__)

GENERATED = 1_000_000, 2_000  # number of odd-one-out images for training, and number of held-out images
TRAIN, VALIDATION = ("train", "training"), ("validation", "val", "valid", "test")
Photographs = tuple[Examples, Examples, int, str]  # training and held-out examples, number of classes, fingerprint


def load_task(config: TrainConfig) -> Task:
    """Loads the classification task of a training run.

    Raises:
      QkjaxError: the name of the task is unknown, the data cannot be read, or a library is not installed.
    """
    name = config.data
    if name in TASKS:
        return TASKS[name](config)
    kind, _, rest = name.partition(":")
    if kind in SOURCES and rest:
        return _photographs(*SOURCES[kind](rest, config.seed), config)
    if name and Path(name).is_dir():
        return _photographs(*_class_folders(Path(name), config.seed), config)
    raise QkjaxError(
        f"data={name!r} is not a known task: expected {', '.join(TASKS)}, tfds:NAME, hf:NAME, or the path of a folder "
        "with one folder of images per class"
    )


def _digits(config: TrainConfig) -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise QkjaxError("the digits need scikit-learn, which is not installed: pip install 'qkjax[train]'") from error
    digits = load_digits()
    images = (digits.images[..., None] / 8 - 1).astype(np.float32)  # from 0..16 to -1..1
    examples = [(image, int(label)) for image, label in zip(images, digits.target, strict=True)]

    if config.shift >= images.shape[1]:
        raise QkjaxError(f"shift={config.shift}: expected less than {images.shape[1]}, the side of a digit in pixels")

    def augment(image: Image, rng: np.random.Generator) -> Image:
        down, right = rng.integers(-config.shift, config.shift + 1, size=2)
        return shift_image(image, int(down), int(right))

    train, held_out = split(examples, config.seed)
    return Task(
        train, held_out, 10, images.shape[1:], augment, fit=lambda image: image, largest_class=largest_class(held_out)
    )


def _odd_one_out(config: TrainConfig) -> Task:
    train, held_out = (OddOneOut(count, config.seed, part) for part, count in enumerate(GENERATED))
    side = CELLS * CELL
    return Task(
        train,
        held_out,
        CLASSES,
        (side, side, 3),
        augment=lambda image, _: image,
        fit=lambda image: image,
        largest_class=held_out.largest_class,
    )


TASKS: dict[str, Callable[[TrainConfig], Task]] = {"digits": _digits, "odd-one-out": _odd_one_out}


def _photographs(train: Examples, held_out: Examples, classes: int, fingerprint: str, config: TrainConfig) -> Task:
    """Makes a task from photographs.

    Training images are augmented by random crops, mirroring and RandAugment. Held-out images are preprocessed as in
    big_vision: the shorter side is resized to a fixed length, and a central crop is taken.
    """
    side = config.resolution

    def augment(image: "PIL.Image.Image", rng: np.random.Generator) -> Image:
        image = inception_crop(image, side, rng)
        pixels = np.asarray(rand_augment(image, config.rand_augment, config.rand_level, rng))
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    def fit(image: "PIL.Image.Image") -> Image:
        return picture(image, PRESET, side)

    shape = (side, side, 3)
    return Task(train, held_out, classes, shape, augment, fit, fingerprint, largest_class(held_out), np.uint8)


def _class_folders(path: Path, seed: int) -> Photographs:
    """Opens images in ImageNet's layout: one folder per class, with or without separate folders train and val."""
    parts = {names: next((path / n for n in names if (path / n).is_dir()), None) for names in (TRAIN, VALIDATION)}
    if None in parts.values():
        images = _listed(path)
        labels, classes = by_folder(path, images)
        return *split(Labelled(images, labels), seed), len(classes), images.fingerprint
    sets = [_listed(part) for part in parts.values()]
    (labels, classes), (held_out, others) = (by_folder(path, images) for images in sets)
    if others != classes:
        odd = sorted(set(others) ^ set(classes))[0]
        raise QkjaxError(
            f"{path} contains the class {odd} in only one of the folders for training and validation: expected the "
            "same classes in both"
        )
    fingerprint = " ".join(images.fingerprint for images in sets)
    return *(Labelled(*pair) for pair in zip(sets, (labels, held_out), strict=True)), len(classes), fingerprint


def _listed(path: Path) -> ImageSet:
    """Opens the images of a path, and logs the notes of the image set."""
    images = open_images(path)
    for note in images.notes:
        log.warning("%s: %s", images.name, note)
    return images


@dataclass(frozen=True)
class _Decoded:
    """The examples of a data set whose library decodes the images.

    Attributes:
      rows: rows of the data set.
      image, label: names of the columns with images and labels.
    """

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


def _tfds(name: str, seed: int) -> Photographs:
    """Opens a data set of TensorFlow Datasets in the format array_record, which can be read without TensorFlow."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise QkjaxError(
            "tfds:NAME needs TensorFlow Datasets, which is not installed: pip install tensorflow-datasets array_record"
        ) from error
    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        parts = {split: builder.as_data_source(split) for split in builder.info.splits}
        features = builder.info.features
        names = _columns(features, tfds.features.Image, tfds.features.ClassLabel)
    except Exception as error:  # the library raises many types of errors
        raise QkjaxError(f"cannot read {name} with TensorFlow Datasets: {first_line(error)}") from error
    return *_parts(parts, names, name, seed), features[names[1]].num_classes, _lengths(parts, builder.info.full_name)


def _hugging_face(name: str, seed: int) -> Photographs:
    """Opens a data set of the Hugging Face hub, or a local folder that the library `datasets` can read.

    The name NAME:CONFIG selects a configuration of the data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise QkjaxError("hf:NAME needs the library datasets, which is not installed: pip install datasets") from error
    repository, _, config = name.partition(":")
    try:
        parts = datasets.load_dataset(repository, config or None)
        features = next(iter(parts.values())).features
        names = _columns(features, datasets.Image, datasets.ClassLabel)
    except Exception as error:  # the library raises many types of errors
        raise QkjaxError(f"cannot read {name} with Hugging Face's datasets: {first_line(error)}") from error
    fingerprint = _lengths(parts, name)
    if Path(repository).is_dir():
        files = sorted(files_in(Path(repository)))
        fingerprint += " " + digest_of([(as_text(str(file)), [part_of_file(file)]) for file in files])
    return *_parts(parts, names, name, seed), features[names[1]].num_classes, fingerprint


SOURCES: dict[str, Callable[[str, int], Photographs]] = {"tfds": _tfds, "hf": _hugging_face}


def _lengths(parts, name: str) -> str:
    return f"{name} {sorted((part, len(rows)) for part, rows in parts.items())}"


def _columns(features, *kinds: type) -> tuple[str, ...]:
    """For each given type, the name of the first column of this type.

    Raises:
      ValueError: no column has one of the types.
    """
    columns = [next((name for name, feature in features.items() if isinstance(feature, kind)), None) for kind in kinds]
    if None in columns:
        raise ValueError(f"found columns {', '.join(features)}, expected a column of images and one of class labels")
    return tuple(columns)


def _parts(parts, columns: tuple[str, ...], name: str, seed: int) -> tuple[Examples, Examples]:
    """The training and held-out examples of a data set. If there is no validation part, the training part is split."""
    train, validation = (next((part for part in names if part in parts), None) for names in (TRAIN, VALIDATION))
    if train is None:
        raise QkjaxError(f"{name} has the parts {', '.join(parts)}: expected a part named {' or '.join(TRAIN)}")
    training = _Decoded(parts[train], *columns)
    return (training, _Decoded(parts[validation], *columns)) if validation else split(training, seed)
