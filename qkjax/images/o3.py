"""Opens the Odd-One-Out (O3) and P3 data sets in their published layout.

Each image has a mask of the target and a mask of the distractors.

O3/ image_properties.csv (or .txt)
    images/NAME.jpg   targ_labels/NAME.jpg   dist_labels/NAME.jpg       (or targ_images, dist_images)
P3/ colors/ orientations/ sizes/, each with the same layout
"""

import csv
from functools import partial
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.images.fingerprint import digest_of, part_of_file
from qkjax.images.preprocess import open_image
from qkjax.images.scenes import Mask, Scene
from qkjax.images.sets import ImageSet
from qkjax.images.sources import SUFFIXES, as_text, refuse_exif_rotation, unreplaced

MASKS = {"target": ("targ_labels", "targ_images"), "distractors": ("dist_labels", "dist_images")}
PARTS = ("colors", "orientations", "sizes")
TABLES = ("image_properties.csv", "image_properties.txt")
LAYOUT = "the O3 data set has the folders images, targ_labels and dist_labels, whose files have matching names"


def open_o3(path: str | Path) -> ImageSet[Scene]:
    """Opens the O3 or P3 data set in a folder; returns an image set of scenes, sorted by name.

    The data set may also be in a subfolder, because the published zip file unpacks to a subfolder.

    Raises:
      QkjaxError: the folder does not have the layout of O3 or P3, or no image in the folder has both masks.
    """
    path = Path(path)
    if not path.is_dir():
        raise QkjaxError(f"there is no folder {path}: pass the folder of the unpacked O3 data set; {LAYOUT}")
    roots = _roots(path) or next((inner for folder in _folders(path) if (inner := _roots(folder))), [])
    if not roots:
        raise QkjaxError(f"{path} is not the O3 data set: {LAYOUT}")
    scenes, left_out = [], []
    for root in roots:
        prefix = f"{root.name}/" if len(roots) > 1 else ""
        folders = {what: next(root / name for name in names if (root / name).is_dir()) for what, names in MASKS.items()}
        masks = {what: _by_stem(folder)[0] for what, folder in folders.items()}
        images, others = _by_stem(root / "images")
        left_out += [
            (prefix + as_text(file.name), f"{images[file.stem].name} has the same name without suffix")
            for file in others
        ]
        for stem, image in sorted(images.items()):
            missing = [what for what in MASKS if stem not in masks[what]]
            if missing:
                reason = f"no mask of the {' and '.join(missing)} in {folders[missing[0]].name}"
                left_out.append((prefix + as_text(image.name), reason))
            else:
                scenes.append((prefix + as_text(image.name), image, *(masks[what][stem] for what in MASKS)))
        absent = (name for name in _listed(root) if Path(name).stem not in images)
        left_out += [(prefix + name, "the table lists this image, but there is no such file") for name in absent]
    if not scenes:
        raise QkjaxError(f"{path}: none of {len(left_out)} images has both masks; {LAYOUT}")
    names = tuple(name for name, *_ in scenes)
    readers = [partial(_read, *item) for item in scenes]
    digest = digest_of([(name, [*map(part_of_file, files)]) for name, *files in scenes], left_out)
    own = unreplaced(path)
    return ImageSet(path.resolve().name, names, lambda index: readers[index](), digest, tuple(left_out), is_current=own)


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _roots(path: Path) -> list[Path]:
    """The folder itself if it has images and masks; otherwise the subfolders of P3 that have images and masks."""

    def has_layout(folder: Path) -> bool:
        return (folder / "images").is_dir() and all(
            any((folder / name).is_dir() for name in names) for names in MASKS.values()
        )

    return [path] if has_layout(path) else [path / part for part in PARTS if has_layout(path / part)]


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """A dict from names without suffix to image files, and a list of files whose name without suffix is already taken.

    If several files have the same name without suffix, the dict contains the first in alphabetical order.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    by_stem: dict[str, Path] = {}
    others = [file for file in sorted(files) if by_stem.setdefault(file.stem, file) != file]
    return by_stem, others


def _listed(root: Path) -> list[str]:
    """The image names in the table of properties, or an empty list if there is no table."""
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    if table is None:
        return []
    try:
        with open(table, newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise QkjaxError(f"cannot read the table {table}: {error}; copy the data set again") from error
    column = next((name for name in ("image_name", "name") if rows and name in rows[0]), None)
    return [row[column] for row in rows if row[column]] if column else []


def _read(name: str, image: Path, target: Path, distractors: Path) -> Scene:
    refuse_exif_rotation(image, name)
    photograph = open_image(image, name)
    most = photograph.width * photograph.height
    return Scene(photograph, *(_mask(file, most) for file in (target, distractors)))


def _mask(file: Path, most: int) -> Mask:
    """Reads a mask, in which white marks the object, as 0 and 255. A threshold removes JPEG noise at the edges."""
    return (np.asarray(open_image(file, most=most).getchannel("R")) >= 128) * np.uint8(255)
