"""The default set: natural photographs that come with scikit-image and scikit-learn, whole and in crops."""

from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import open_image
from qkjax.images.sets import ImageSet
from qkjax.images.sources import Listed, image_set

FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
FILES = {
    "skimage": ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png",
                "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png",
                "rocket.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
PARTS = (2, 3)


def photographs(crops: bool = True) -> ImageSet:
    """Fifteen photographs: people, animals, things, a street, textures, sky.

    Args:
      crops: also squares of half and of a third of each one's short side, side by side over all of it
        (with them about 250 images), so that the images a mode likes best show what in them it likes.

    Raises:
      QkjaxError: scikit-image or scikit-learn is not installed.
    """
    found = []
    for package, files in FILES.items():
        for file in files:
            found += _whole_and_crops(_folder(package) / file, PARTS if crops else ())
    return image_set("photographs", found)


def subjects(images: ImageSet) -> tuple[list[int], list[str]]:
    """For each of the default photographs and crops the number of the photograph it is of; and their names."""
    stems = [name.split(" ")[0] for name in images.names]
    names = sorted(set(stems))
    return [names.index(stem) for stem in stems], names


def _folder(package: str) -> Path:
    spec = find_spec(package)  # located, not imported: only its files are needed
    if spec is None or not spec.submodule_search_locations:
        raise QkjaxError(
            "the default photographs come with scikit-image and scikit-learn, which are not both here: "
            "pip install 'qkjax[photographs]', or give your own folder as images=..."
        )
    return Path(spec.submodule_search_locations[0], FOLDERS[package])


def _whole_and_crops(path: Path, parts: tuple[int, ...]) -> list[Listed]:
    whole = open_image(path)
    size = path.stat().st_size
    found: list[Listed] = [(path.stem, size, partial(open_image, path))]
    for part in parts:
        side = min(whole.size) // part
        columns, rows = (length // side for length in whole.size)
        left, top = ((length - count * side) // 2 for length, count in zip(whole.size, (columns, rows), strict=True))
        for row, column in product(range(rows), range(columns)):
            x, y = left + column * side, top + row * side
            name = f"{path.stem} 1/{part} row {row} column {column}"
            found.append((name, size, partial(_crop, path, (x, y, x + side, y + side))))
    return found


def _crop(path: Path, box: tuple[int, int, int, int]) -> "PIL.Image.Image":
    return open_image(path).crop(box)
