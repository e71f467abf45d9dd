"""Images in which every object is marked: ADE20K in its layouts, any images beside masks, and composed scenes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.generated import SIDE, squares
from qkjax.images.photographs import photographs
from qkjax.images.prefetch import ahead, or_reason, stack
from qkjax.images.preprocess import Preprocess, Resolution, open_image, picture, side_lengths, source_pixels
from qkjax.images.sources import SUFFIXES, digest_of, files_in, refuse_turned

MASKS = ("annotations_instance", "masks", "annotations")
"""Folders of masks beside `images`, the first that is there: ADE20K's instances, one's own, ADE20K's classes."""
SEGMENTED = "_seg.png"
"""End of the name of a mask that lies beside its image, as in the full ADE20K."""
MOST = 40
"""Objects of an image that are looked at, the largest."""
PIECES = 5

Labels = Int[np.ndarray, "height width"]


@dataclass(frozen=True)
class ObjectSet:
    """Images in a fixed order.

    Attributes:
      name: of the set.
      names: of the images.
      read: gives the image of an index, in RGB, and a number for each pixel's object, 0 for none. Raises QkjaxError
        where they cannot be read.
      fingerprint: changes with what the set is.
      left_out: name and reason of images that are known beforehand to have no mask.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[int], tuple["PIL.Image.Image", Labels]]
    fingerprint: str
    left_out: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)


class ObjectBatch(NamedTuple):
    """Images of one size; a batch that is not full ends in black ones with index -1.

    Attributes:
      pixels: as the model sees them, before normalisation.
      objects: the share of each patch that each object is, the largest first; 0 throughout where there are fewer.
      index: in the set; -1 where unreadable or not there.
      unreadable: index and reason of those that could not be read.
    """

    pixels: UInt8[np.ndarray, "batch height width 3"]
    objects: Float[np.ndarray, "batch objects patches"]
    index: Int32[np.ndarray, "batch"]
    unreadable: tuple[tuple[int, str], ...]


def object_batches(
    images: ObjectSet,
    groups: Iterable[Sequence[int]],
    size: int,
    preset: Preprocess,
    resolution: Resolution | None,
    patch_size: tuple[int, int],
) -> Iterator[ObjectBatch]:
    """A batch of `size` for each group of at most as many indices, in order; other threads make them beforehand."""
    side = side_lengths(preset, resolution)
    patches = int(np.prod([n // p for n, p in zip(side, patch_size, strict=True)]))
    nothing = np.zeros((*side, 3), np.uint8), np.zeros((MOST, patches), np.float32)

    def prepare(index: int) -> tuple[np.ndarray, np.ndarray] | str:
        name = images.names[index]
        return or_reason(lambda: _seen(*images.read(index), name, preset, resolution, patch_size), name)

    for group, results in ahead(prepare, groups):
        (pixels, objects), index, failed = stack(group, results, size, nothing)
        yield ObjectBatch(pixels, objects, index, failed)


def _seen(
    image: "PIL.Image.Image",
    labels: Labels,
    name: str,
    preset: Preprocess,
    resolution: Resolution | None,
    patch_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees, and its objects of at least a patch's area, by the pixels that they have in each patch."""
    if labels.shape != (image.height, image.width):
        raise QkjaxError(
            f"{name}: its mask has {labels.shape[1]} x {labels.shape[0]} pixels, and the image {image.width} x "
            f"{image.height}"
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
        raise QkjaxError(f"{name}: {len(largest)} objects of a patch's area in what the model sees, and two are wanted")
    objects = np.zeros((MOST, len(blocks)), np.float32)
    for place, number in enumerate(largest):
        objects[place] = (blocks == number).mean(1)
    return picture(image, preset, resolution), objects


def open_objects(path: str | Path) -> ObjectSet:
    """ADE20K (the scene parsing benchmark: images/ beside annotations_instance/ or annotations/; or the full one, whose
    masks are NAME_seg.png beside NAME.jpg), or any folder with images/ and masks/ of the same names.

    Two pixels are of one object where their masks have the same value (in all channels); black is none.

    Raises:
      QkjaxError: none of these, or no image with a mask.
    """
    path = Path(path)
    if not path.is_dir():
        raise QkjaxError(f"there is no folder {path}: give one with images and masks, such as ADE20K's")
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
            f"{path} has no image with a mask: looked for folders images and {', '.join(MASKS)} with files of the same "
            f"names, and for NAME{SEGMENTED} beside images"
        )
    left_out = tuple((name, "no mask of its name") for name in sorted(images) if name not in masks)
    readers = [partial(_read, *pair) for pair in pairs]
    names = tuple(name for name, *_ in pairs)
    digest = digest_of(pairs, left_out)
    return ObjectSet(path.resolve().name, names, lambda index: readers[index](), digest, left_out)


def _files(folder: Path) -> dict[str, Path]:
    """Images by their paths in the folder, without the ending; names of bytes that are no text have question marks."""
    found = (file for file in files_in(folder) if file.suffix.lower() in SUFFIXES)
    return {str(f.relative_to(folder).with_suffix("")).encode(errors="replace").decode(): f for f in found}


def _read(name: str, image: Path, mask: Path) -> tuple["PIL.Image.Image", Labels]:
    refuse_turned(image, name)
    return open_image(image, name), _labels(mask)


def _labels(mask: Path) -> Labels:
    """A number for each value; read as it is: colours of a palette or of transparency are no labels."""
    from PIL import Image

    try:
        with Image.open(mask) as opened:
            if opened.format == "JPEG":
                raise ValueError("JPEG changes the values of pixels, which are the objects here; save it as PNG")
            values = np.asarray(opened).astype(np.int64)
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise QkjaxError(f"cannot read the mask {mask.name}: {error}") from error
    if values.ndim == 2 or values.shape[2] == 2:  # gray, and gray with transparency
        return values if values.ndim == 2 else values[..., 0]
    return (values[..., :3] * np.array([1 << 16, 1 << 8, 1])).sum(-1)


def mosaics(count: int, seed: int) -> ObjectSet:
    """Composed scenes: five pieces of five photographs, each with all that is nearest to a random point."""
    names, made_of = tuple(f"{index:05d}" for index in range(count)), photographs(crops=False).fingerprint
    return ObjectSet(f"mosaics, seed {seed}", names, partial(_mosaic, seed), f"mosaics {count} {seed} {made_of}")


def _mosaic(seed: int, index: int) -> tuple["PIL.Image.Image", Labels]:
    from PIL import Image

    rng = np.random.default_rng([seed, index])
    photographs = squares()
    chosen = rng.choice(len(photographs), PIECES, replace=False)
    points = rng.uniform(0.15 * SIDE, 0.85 * SIDE, (PIECES, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    nearest = ((y - points[:, 0, None, None]) ** 2 + (x - points[:, 1, None, None]) ** 2).argmin(0)
    pixels = np.stack([photographs[i] for i in chosen])[nearest, y, x]
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8)), nearest + 1
