"""Derives class labels of images from the names of their folders, and groups of images that are not independent."""

from pathlib import Path
from typing import NamedTuple

from qkjax.errors import QkjaxError
from qkjax.images.default_set import is_default_set, subjects
from qkjax.images.sources import ImageSet


class Groups(NamedTuple):
    """The group of each image, which intervals resample, and what a group is, such as "photograph"."""

    of_images: list[int]
    unit: str


def groups_of(images: ImageSet) -> Groups:
    """The groups of images that are not independent of each other.

    In the default set, crops of one photograph are a group. In any other set, each image is a group of its own.

    Example:
      >>> import qkjax
      >>> groups = groups_of(qkjax.images.photographs())
      >>> len(groups.of_images) > 200, len(set(groups.of_images)), groups.unit
      (True, 15, 'photograph')
    """
    if is_default_set(images):
        return Groups(subjects(images)[0], "photograph")
    return Groups(list(range(len(images))), "image")


def by_folder(path: Path, images: ImageSet) -> tuple[list[int], list[str]]:
    """The class index of each image, and the names of the classes.

    The classes are the outermost folders, sorted by name.

    Args:
      path: path of the image set, for the error message.
      images: the image set.

    Raises:
      QkjaxError: there are fewer than two folders, or some images are not in any folder.
    """
    parts = [[part for part in name.split("/") if not part.endswith((".zip", ".tar"))] for name in images.names]
    folders = [part[0] if len(part) > 1 else "" for part in parts]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes:
        raise QkjaxError(
            f"{path} has no classes: expected at least two subfolders with images, one for each class, and no images "
            "outside of these subfolders"
        )
    number = {folder: index for index, folder in enumerate(classes)}
    return [number[folder] for folder in folders], classes


def head_classes(classes: list[str], outputs: int) -> list[int] | None:
    """For each class, the index of the classifier output that belongs to it; None if the outputs are unknown.

    If the names of all folders are numbers ("0", "281"), each name is the index of the output. Otherwise, if there are
    as many folders as outputs, the folders, sorted by name, correspond to the outputs in order, as in ImageNet.
    """
    numbers = [int(name) for name in classes if name.isdecimal() and len(name) < 10 and int(name) < outputs]
    if len(numbers) == len(classes):
        return numbers
    return list(range(outputs)) if len(classes) == outputs else None
