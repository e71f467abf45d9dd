"""Class labels of images, from the names of their folders."""

from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.images.sources import ImageSet


def by_folder(path: Path, images: ImageSet) -> tuple[list[int], list[str]]:
    """The class index of each image, and the names of the classes, which are the outermost folders, sorted by name.

    Args:
      path: path of the image set, for the error.
      images: the image set.

    Raises:
      QkjaxError: there are fewer than two folders, or some images are in no folder.
    """
    parts = [[part for part in name.split("/") if not part.endswith((".zip", ".tar"))] for name in images.names]
    folders = [part[0] if len(part) > 1 else "" for part in parts]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes:
        raise QkjaxError(f"{path} needs a folder of images for each class, and at least two classes")
    number = {folder: index for index, folder in enumerate(classes)}
    return [number[folder] for folder in folders], classes


def head_classes(classes: list[str], outputs: int) -> list[int] | None:
    """The index of the classifier output for each class, or None if it is unknown.

    A folder whose name is a number ("0", "281") belongs to the output with that index. Otherwise, if there is one
    folder per output, folders sorted by name belong to the outputs in order, as in ImageNet.
    """
    numbers = [int(name) for name in classes if name.isdecimal() and int(name) < outputs]
    if len(numbers) == len(classes):
        return numbers
    return list(range(outputs)) if len(classes) == outputs else None
