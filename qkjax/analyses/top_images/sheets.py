"""Makes the rows of sheets of top images: pictures, query and key maps, and captions."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import get_args

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

from qkjax.activations.project import Stream
from qkjax.analyses.decomposition import decompose
from qkjax.analyses.top_images.tables import has_maps, images_of_mode, maps_of_mode, with_sign
from qkjax.errors import QkjaxError
from qkjax.figures.overlay import Map
from qkjax.figures.sheets import SheetRow, Tile
from qkjax.images.preprocess import normalise, picture
from qkjax.images.sets import ImageSet
from qkjax.interaction.mode_name import ModeName
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import (
    batches_of_photographs,
    crop_to_patches,
    for_photographs,
    photograph_grid,
    resolution_of,
)
from qkjax.passes.options import PassOptions, batch_size
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.vit.model import ViT, forward
from qkjax.weights.checkpoint import Checkpoint


def options_of(dataset: xr.Dataset) -> tuple[Stream, PassOptions]:
    """Returns the stream and the pass options with which a result of `top_images` was computed.

    Raises:
      QkjaxError: the dataset does not state its settings.
    """
    try:
        settings = json.loads(dataset.attrs["settings"])
        resolution = json.loads(settings["resolution"])
        options = PassOptions(int(settings["batch"]), tuple(resolution) if resolution else None, settings["dtype"])
        batch_size(options.batch)
        sides = options.resolution or (1, 1)
        if settings["stream"] not in get_args(Stream) or options.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"stream={settings['stream']!r}, dtype={options.dtype!r}")
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(f"resolution={options.resolution!r}")
        return settings["stream"], options
    except (KeyError, ValueError, TypeError) as error:
        raise QkjaxError(f"the dataset does not state its settings ({error!r}); compute the dataset again") from error


def sheets(
    checkpoint: Checkpoint, images: ImageSet, dataset: xr.Dataset, pages: Mapping[str, Sequence[ModeName]]
) -> Iterator[tuple[str, list[SheetRow]]]:
    """Yields the name and the rows of each page, for `figures.top_images_sheet`.

    Images that can no longer be read are left out. A mode without images has no row.

    Args:
      checkpoint: the checkpoint.
      images: the image set of the dataset.
      dataset: the result of `top_images`.
      pages: a dict from the name of each page to its modes.
    """
    checkpoint = for_photographs(checkpoint)
    pages = {page: [with_sign(dataset, name) for name in names] for page, names in pages.items()}
    computed = _second_pass(checkpoint, images, dataset, {name for names in pages.values() for name in names})
    visible = _visible(checkpoint, images, options_of(dataset)[1])

    def tiles(name: ModeName) -> Iterator[Tile]:
        found, stored = images_of_mode(dataset, name), has_maps(dataset, name)
        maps = maps_of_mode(dataset, name) if stored else [computed.get((index, name)) for index, _ in found]
        for (index, score), pair in zip(found, maps, strict=True):
            pixels = visible(index)
            if pixels is not None and pair is not None:
                yield Tile(pixels, *pair, f"{score:.3g}")

    for page, names in pages.items():
        rows = []
        for name in names:
            s, cosine = (float(dataset[x].values[name[:3]]) for x in ("singular_value", "cosine"))
            rows.append(SheetRow(f"{name}\ncos {cosine:.2f}\ns {s:.3g}", list(tiles(name))))
        if rows := [row for row in rows if row.tiles]:
            yield page, rows


def _visible(checkpoint: Checkpoint, images: ImageSet, options: PassOptions) -> Callable[[int], np.ndarray | None]:
    """Returns a function from the index of an image to the pixels that the model sees.

    For an image that can no longer be read, this function prints a note to standard error and returns None.
    """
    resolution, reported = resolution_of(checkpoint, options.resolution), set()

    @lru_cache(maxsize=512)
    def visible(index: int) -> np.ndarray | None:
        try:
            return crop_to_patches(checkpoint, picture(images.read(index), checkpoint.preprocess, resolution))
        except QkjaxError as error:
            if index not in reported:
                print(f"this image was scanned, but the sheets leave it out: {error}", file=sys.stderr)
            reported.add(index)
            return None

    return visible


def _second_pass(
    checkpoint: Checkpoint, images: ImageSet, dataset: xr.Dataset, names: Collection[ModeName]
) -> dict[tuple[int, ModeName], tuple[Map, Map]]:
    """Computes the maps of the signed modes in `names` for which the dataset contains no maps; see `mode_maps`."""
    modes_by_image = defaultdict(list)
    for name in sorted(name for name in names if not has_maps(dataset, name)):
        for index, _ in images_of_mode(dataset, name):
            modes_by_image[index].append(name)
    if not modes_by_image:
        return {}
    modes = decompose(checkpoint)
    return mode_maps(checkpoint, modes, images, modes_by_image, *options_of(dataset))


def sheet_rows(checkpoint: Checkpoint, images: ImageSet, dataset: xr.Dataset, names: Sequence[str]) -> list[SheetRow]:
    """The rows of one sheet, which shows the modes with the given names, such as "L8 H7 M2"; see `sheets`.

    Raises:
      QkjaxError: a mode does not exist.
    """
    parsed = [ModeName.parse(name, dataset["cosine"].shape) for name in names]
    return next((rows for _, rows in sheets(checkpoint, images, dataset, {"": parsed})), [])


def mode_maps(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    modes_by_image: Mapping[int, Sequence[ModeName]],
    stream: Stream,
    options: PassOptions,
) -> dict[tuple[int, ModeName], tuple[Map, Map]]:
    """Computes the query and key maps of given modes on given images. For sign -1, the maps are negated.

    If an image can no longer be read, the function leaves it out, and prints a message to standard error.

    Args:
      checkpoint: the checkpoint.
      modes: modes of the checkpoint, in the plain frame (see `Frame`).
      images: the image set.
      modes_by_image: a dict from the index of an image in the set to names of modes.
      stream: the tokens to project.
      options: options of the pass.
    """
    model, params = ViT(checkpoint.config, options.dtype), jax.device_put(checkpoint.params)
    grid, size = photograph_grid(checkpoint, options.resolution), batch_size(options.batch)
    u, v = np.asarray(modes.u), np.asarray(modes.v)
    special, maps = checkpoint.config.prefix_tokens, {}
    indices = sorted(modes_by_image)
    groups = [indices[i : i + size] for i in range(0, len(indices), size)]
    few = len(indices) < 3 * size
    with tqdm(total=len(indices), desc="maps", unit="img", disable=few) as bar, deferred_interrupt() as check_interrupt:
        for batch in batches_of_photographs(checkpoint, images, options)(groups):
            check_interrupt()
            pixels = normalise(batch.pixels, checkpoint.preprocess)
            tokens = np.asarray(forward(model, params, pixels, (stream,))[1][stream], np.float32)
            for place, index in enumerate(batch.index):
                for name in modes_by_image.get(int(index), ()):
                    y = tokens[name.layer, place, special:]
                    directions = (x[name.layer, name.head, :, name.mode] for x in (u, v))
                    maps[int(index), name] = tuple(name.sign * (y @ d).reshape(grid) for d in directions)
                bar.update(int(index >= 0))
    return maps
