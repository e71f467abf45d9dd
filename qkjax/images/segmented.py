"""Opens images with a mask of every object: ADE20K, your own images with masks, or scenes composed of photographs."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from qkjax.errors import QkjaxError
from qkjax.images.decode import opened
from qkjax.images.default_set import photographs
from qkjax.images.fingerprint import digest_of, part_of_file
from qkjax.images.generated import SIDE, square_photographs
from qkjax.images.memory import PIXELS
from qkjax.images.preprocess import Preprocess, Resolution, open_image, picture, side_lengths, source_pixels
from qkjax.images.resize import region
from qkjax.images.rgb import BAND
from qkjax.images.sets import ImageSet
from qkjax.images.sources import SUFFIXES, as_text, files_in, refuse_exif_rotation, unreplaced

MASKS = ("annotations_instance", "masks", "annotations")
"""Possible names of the folder of masks next to the folder `images`, in order of preference: instance masks of ADE20K,
your own masks, class masks of ADE20K."""
SEGMENTED = "_seg.png"
"""Ending of a mask's file name if the mask is in the same folder as its image, as in the full ADE20K data set."""
MOST = 40
"""Largest number of objects per image that are used. Larger objects take precedence."""
PIECES = 5  # number of pieces in a composed scene

EXACT = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "LA", "PA", "RGB", "RGBA", "RGBX")
"""Modes of Pillow whose pixels are whole numbers, as stored in the file."""
Labels = Int[np.ndarray, "height width"]


class Segmented(NamedTuple):
    """An image in RGB, and, for each pixel, the number of the object at this pixel (0 if there is no object)."""

    image: "PIL.Image.Image"
    labels: Labels


def crop_objects(
    segmented: Segmented,
    name: str,
    preset: Preprocess,
    resolution: Resolution | None,
    patch_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels that the model sees, and the share of each patch that each object covers.

    Objects whose area is smaller than a patch are left out.

    Raises:
      QkjaxError: the mask differs from the image in size, or fewer than two objects have at least the area of a patch.
    """
    image, labels = segmented
    if labels.shape != (image.height, image.width):
        raise QkjaxError(
            f"{name}: the mask has {labels.shape[1]} x {labels.shape[0]} pixels: expected the size of the image, "
            f"{image.width} x {image.height}"
        )
    rows, columns = source_pixels(labels.shape, preset, resolution)
    labels = labels[rows[:, None], columns[None]]
    down, right = (n // p for n, p in zip(labels.shape, patch_size, strict=True))
    blocks = labels[: down * patch_size[0], : right * patch_size[1]]
    blocks = blocks.reshape(down, patch_size[0], right, patch_size[1]).swapaxes(1, 2).reshape(down * right, -1)
    numbers, counts = np.unique(blocks, return_counts=True)
    whole = (numbers != 0) & (counts >= blocks.shape[1])
    largest = numbers[whole][np.argsort(-counts[whole], kind="stable")][:MOST]
    if len(largest) < 2:
        raise QkjaxError(
            f"{name}: the number of objects as large as a patch, in the crop that the model sees, is {len(largest)}: "
            "expected two or more"
        )
    objects = np.zeros((MOST, len(blocks)), np.float32)
    for place, number in enumerate(largest):
        objects[place] = (blocks == number).mean(1)
    return picture(image, preset, resolution), objects


def open_objects(path: str | Path) -> ImageSet[Segmented]:
    """Opens a folder of images with object masks: ADE20K, or your own images.

    A folder of your own images must have subfolders images/ and masks/ whose files have matching names. ADE20K is read
    in two layouts. The scene parsing benchmark has a folder images/ and a folder of masks: annotations_instance/ or
    annotations/. The full data set has the mask NAME_seg.png next to each image NAME.jpg.

    Pixels with the same value in all channels belong to the same object. Black pixels belong to no object.

    Raises:
      QkjaxError: the folder does not have one of these layouts, or no image in the folder has a mask.
    """
    path = Path(path)
    if not path.is_dir():
        raise QkjaxError(f"there is no folder {path}: pass a folder of images and masks, such as ADE20K's")
    folder = next((path / name for name in MASKS if (path / name).is_dir()), None)
    if (path / "images").is_dir() and folder:
        images, masks = (_files(part) for part in (path / "images", folder))
    else:
        files, end = _files(path), SEGMENTED.removesuffix(".png")
        images = {name: file for name, file in files.items() if not name.endswith(end)}
        masks = {name.removesuffix(end): file for name, file in files.items() if name.endswith(end)}
    pairs = [(name, images[name], masks[name]) for name in sorted(images) if name in masks]
    if not pairs:
        raise QkjaxError(
            f"{path} has no image with a mask: expected a folder images/ and a folder of masks ({' or '.join(MASKS)}) "
            f"whose files have matching names, or a mask NAME{SEGMENTED} next to each image"
        )
    left_out = tuple((name, "no mask has the name of this image") for name in sorted(images) if name not in masks)
    readers = [partial(_read, *pair) for pair in pairs]
    names = tuple(name for name, *_ in pairs)
    digest = digest_of([(name, [*map(part_of_file, files)]) for name, *files in pairs], left_out)
    own = unreplaced(path)
    return ImageSet(path.resolve().name, names, lambda index: readers[index](), digest, left_out, is_current=own)


def _files(folder: Path) -> dict[str, Path]:
    """A dict from relative paths without suffix to images.

    Raises:
      QkjaxError: two images have the same name, except for the suffix.
    """
    result: dict[str, Path] = {}
    for file in files_in(folder):
        if file.suffix.lower() in SUFFIXES:
            name = as_text(str(file.relative_to(folder).with_suffix("")))
            if name in result:
                raise QkjaxError(f"{folder} contains {result[name].name} and {file.name}: expected one of them")
            result[name] = file
    return result


def _read(name: str, image: Path, mask: Path) -> Segmented:
    refuse_exif_rotation(image, name)
    photograph = open_image(image, name)
    return Segmented(photograph, _labels(mask, photograph.width * photograph.height))


def _labels(mask: Path, most: int) -> Labels:
    """Replaces each distinct pixel value of a mask by a number. Palettes and transparency are ignored."""
    try:
        with opened(mask, most) as image:
            _check_exact(image)
            PIXELS.take(image.width * image.height)
            labels, rows = np.empty((image.height, image.width), np.int32), max(1, BAND // max(1, image.width))
            for top in range(0, image.height, rows):
                part = labels[top : top + rows]
                part[:] = _numbers(region(image, top, 0, *part.shape).astype(np.int64))
    except Exception as error:  # Pillow's readers raise many types of errors
        raise QkjaxError(f"cannot read the mask {mask.name}: {error}") from error
    return labels


def _check_exact(image: "PIL.Image.Image") -> None:
    """Checks that the values of pixels, which identify the objects, are whole numbers that Pillow reads without loss.

    Raises:
      ValueError: the file stores other values.
    """
    raw = str(image.tile[0][3]) if image.tile else ""
    if image.format == "JPEG":
        what = "JPEG changes pixel values"
    elif image.mode not in EXACT:
        what = f"its pixels have the mode {image.mode}"
    elif ";16" in raw and not image.mode.startswith("I"):
        what = "its channels have 16 bits, of which only 8 can be read"
    else:
        return
    raise ValueError(
        f"{what}, but pixel values must identify the objects: save the mask as PNG with 8-bit channels, "
        "or of one 16-bit channel"
    )


def _numbers(values: Int[np.ndarray, "height width *channels"]) -> Labels:
    if values.ndim == 2 or values.shape[2] == 2:  # modes gray, and gray with transparency
        return values if values.ndim == 2 else values[..., 0]
    return (values[..., :3] * np.array([1 << 16, 1 << 8, 1])).sum(-1)


def mosaics(count: int, seed: int) -> ImageSet[Segmented]:
    """Returns an image set of scenes. Each scene is composed of five pieces, each from a different photograph.

    The five pieces are the regions of pixels nearest to each of five random points.
    """
    names, sources = tuple(f"{index:05d}" for index in range(count)), photographs(crops=False).fingerprint
    return ImageSet(f"mosaics, seed {seed}", names, partial(_mosaic, seed), f"mosaics {count} {seed} {sources}")


def _mosaic(seed: int, index: int) -> Segmented:
    from PIL import Image

    rng = np.random.default_rng([seed, index])
    photographs = square_photographs()
    selected = rng.choice(len(photographs), PIECES, replace=False)
    points = rng.uniform(0.15 * SIDE, 0.85 * SIDE, (PIECES, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    nearest = ((y - points[:, 0, None, None]) ** 2 + (x - points[:, 1, None, None]) ** 2).argmin(0)
    pixels = np.stack([photographs[i] for i in selected])[nearest, y, x]
    return Segmented(Image.fromarray(np.rint(255 * pixels).astype(np.uint8)), nearest + 1)


def blank_objects(
    preset: Preprocess, resolution: Resolution | None, patch_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and object shares that replace a missing image: black pixels, and no object."""
    side = side_lengths(preset, resolution)
    patches = int(np.prod([n // p for n, p in zip(side, patch_size, strict=True)]))
    return np.zeros((*side, 3), np.uint8), np.zeros((MOST, patches), np.float32)
