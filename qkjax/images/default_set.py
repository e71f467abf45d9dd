"""The default image set: natural photographs from scikit-image and scikit-learn, and crops of these photographs."""

import hashlib
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.images.archives import Listed
from qkjax.images.fingerprint import part_of_file
from qkjax.images.preprocess import open_image
from qkjax.images.sets import ImageSet
from qkjax.images.sources import image_set

FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
FILES = {
    "skimage": ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png",
                "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png",
                "rocket.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
PARTS = (2, 3)  # the side of a crop is a half or a third of the photograph's short side


def photographs(crops: bool = True) -> ImageSet:
    """The default image set: fifteen photographs of people, animals, objects, a street, textures and sky.

    Args:
      crops: whether to add square crops that tile each photograph. The side of a crop is a half or a third of the
        photograph's short side. With crops, the set has about 250 images. The crops show which part of a photograph
        excites a mode.

    Raises:
      QkjaxError: scikit-image or scikit-learn is not installed.
    """
    listed = []
    for package, files in FILES.items():
        for file in files:
            listed += _whole_and_crops(_folder(package) / file, PARTS if crops else ())
    names_and_sizes = "\n".join(f"{image.name}\0{image.size}" for image in listed)
    return image_set("photographs", listed, hashlib.sha256(names_and_sizes.encode()).hexdigest())


def is_default_set(images: ImageSet) -> bool:
    """Whether a set consists of photographs of the default set and of their crops."""
    stems = {Path(file).stem for files in FILES.values() for file in files}
    return images.name == "photographs" and all(name.split(" ")[0] in stems for name in images.names)


def subjects(images: ImageSet) -> tuple[list[int], list[str]]:
    """For each image of the default set, the index of the photograph that it shows, as a whole or in part.

    The second result is the names of the photographs.
    """
    stems = [name.split(" ")[0] for name in images.names]
    names = sorted(set(stems))
    return [names.index(stem) for stem in stems], names


def _folder(package: str) -> Path:
    spec = find_spec(package)  # finds the package without importing it, because only its files are needed
    if spec is None or not spec.submodule_search_locations:
        raise QkjaxError(
            "the default photographs come with scikit-image and scikit-learn, but at least one of these packages is "
            "missing: pip install 'qkjax[photographs]', or pass your own folder as images=..."
        )
    return Path(spec.submodule_search_locations[0], FOLDERS[package])


def _whole_and_crops(path: Path, parts: tuple[int, ...]) -> list[Listed]:
    whole = open_image(path)
    file = part_of_file(path)
    listed = [Listed(path.stem, file.size, partial(open_image, path), file)]
    for part in parts:
        side = min(whole.size) // part
        columns, rows = (length // side for length in whole.size)
        left, top = ((length - count * side) // 2 for length, count in zip(whole.size, (columns, rows), strict=True))
        for row, column in product(range(rows), range(columns)):
            x, y = left + column * side, top + row * side
            name = f"{path.stem} 1/{part} row {row} column {column}"
            listed.append(Listed(name, file.size, partial(_crop, path, (x, y, x + side, y + side)), file))
    return listed


def _crop(path: Path, box: tuple[int, int, int, int]) -> "PIL.Image.Image":
    return open_image(path).crop(box)
