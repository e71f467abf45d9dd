"""Classes of images, by the folders that they lie in."""

from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.images.sources import ImageSet


def by_folder(path: Path, images: ImageSet) -> tuple[list[int], list[str]]:
    """The number of each image's class, and the classes: the outermost folders in which images lie, by name.

    Args:
      path: of the set, for the error.

    Raises:
      QkjaxError: fewer than two folders, or images outside of them.
    """
    parts = [[part for part in name.split("/") if not part.endswith((".zip", ".tar"))] for name in images.names]
    folders = [part[0] if len(part) > 1 else "" for part in parts]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes:
        raise QkjaxError(f"{path} needs a folder of images for each class, and at least two classes")
    number = {folder: index for index, folder in enumerate(classes)}
    return [number[folder] for folder in folders], classes


def head_classes(classes: list[str], outputs: int) -> list[int] | None:
    """The output of a head for each class. Folders named by numbers name the output ("0", "281"); if there is one
    folder per output, folders are the outputs in order of their names, as ImageNet's are. Otherwise None."""
    numbers = [int(name) for name in classes if name.isdecimal() and int(name) < outputs]
    if len(numbers) == len(classes):
        return numbers
    return list(range(outputs)) if len(classes) == outputs else None
