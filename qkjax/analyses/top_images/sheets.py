"""From the images that modes like best to what a sheet shows of them: pictures, maps, words."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float
from tqdm import tqdm

from qkjax.analyses.top_images.scan import ScanOptions, check
from qkjax.figures.sheets import SheetRow, Tile
from qkjax.images.prefetch import batches
from qkjax.images.preprocess import normalise, picture
from qkjax.images.sources import ImageSet
from qkjax.interaction.mode_name import ModeName
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import resolution_of, seen_picture
from qkjax.passes.settings import batch_size
from qkjax.results.rows import Row
from qkjax.runtime.interrupt import held
from qkjax.vit.model import ViT, forward
from qkjax.weights.load import Checkpoint

Map = Float[np.ndarray, "rows columns"]


def settled(data: xr.Dataset, name: ModeName) -> ModeName:
    """The mode with a sign: where that is left open, the one whose best image has the larger score."""
    best = data["value"].values[0][name[:3]][:, 0]
    return name if name.sign else name._replace(sign=1 if best[0] >= best[1] else -1)


def top_of(data: xr.Dataset, name: ModeName) -> list[tuple[int, float]]:
    """Index and score of a signed mode's images, best first, by the first score of the dataset."""
    place = (0, *name[:3], 0 if name.sign > 0 else 1)
    pairs = zip(data["image_index"].values[place], data["value"].values[place], strict=True)
    return [(int(index), float(score)) for index, score in pairs if index >= 0]


def table(data: xr.Dataset, names: Sequence[ModeName]) -> list[Row]:
    """A row for each image of each mode."""
    s, cosine = data["singular_value"].values, data["cosine"].values
    return [
        {**name._asdict(), "cosine": float(cosine[name[:3]]), "singular_value": float(s[name[:3]]), "place": place,
         "score": score, "image": str(data["image"].values[index])}
        for name in (settled(data, name) for name in names)
        for place, (index, score) in enumerate(top_of(data, name))
    ]  # fmt: skip


def sheets(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    data: xr.Dataset,
    pages: Mapping[str, Sequence[ModeName]],
) -> Iterator[tuple[str, list[SheetRow]]]:
    """For each page, the rows that `figures.top_images_sheet` draws; a mode without an image has none.

    Args:
      modes, images, options: those of the scan.
      data: what the scan found, as `top_images_dataset` has it.
      pages: the modes on each page, by the page's name.

    An image that cannot be read any more is left out.
    """
    pages = {page: [settled(data, name) for name in names] for page, names in pages.items()}
    wanted = defaultdict(list)
    for name in sorted({name for names in pages.values() for name in names}):
        for index, _ in top_of(data, name):
            wanted[index].append(name)
    maps = mode_maps(checkpoint, modes, images, wanted, options)
    resolution = resolution_of(checkpoint, options.resolution)

    @lru_cache(maxsize=512)
    def seen(index: int) -> np.ndarray:
        return seen_picture(checkpoint, picture(images.read(index), checkpoint.preprocess, resolution))

    for page, names in pages.items():
        rows = []
        for name in names:
            s, cosine = (float(data[x].values[name[:3]]) for x in ("singular_value", "cosine"))
            shown = [(index, score) for index, score in top_of(data, name) if (index, name) in maps]
            tiles = [Tile(seen(index), *maps[index, name], f"{score:.3g}") for index, score in shown]
            rows.append(SheetRow(f"{name}\ncos {cosine:.2f}\ns {s:.3g}", tiles))
        if rows := [row for row in rows if row.tiles]:
            yield page, rows


def sheet_rows(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    data: xr.Dataset,
    names: Sequence[str],
) -> list[SheetRow]:
    """The rows of one sheet of modes by their names, such as "L8 H7 M2"; see `sheets`.

    Raises:
      QkjaxError: a name of no mode.
    """
    parsed = [ModeName.parse(name, data["cosine"].shape) for name in names]
    return next((rows for _, rows in sheets(checkpoint, modes, images, options, data, {"": parsed})), [])


def mode_maps(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    wanted: Mapping[int, Sequence[ModeName]],
    options: ScanOptions,
) -> dict[tuple[int, ModeName], tuple[Map, Map]]:
    """Query and key map of some modes on some images, by image and mode; for sign -1 both negated.

    Args:
      wanted: names of modes by the index of the image in the set. One that cannot be read any more is
        left out, and standard error says so.
    """
    model, params = ViT(checkpoint.config, options.dtype), jax.device_put(checkpoint.params)
    grid, size = check(checkpoint, options), batch_size(options.batch)
    u, v = np.asarray(modes.u), np.asarray(modes.v)
    special, maps = checkpoint.config.prefix_tokens, {}
    indices = sorted(wanted)
    groups = [indices[i : i + size] for i in range(0, len(indices), size)]
    resolution = resolution_of(checkpoint, options.resolution)
    made = batches(images, groups, size, checkpoint.preprocess, resolution)
    with tqdm(total=len(wanted), desc="maps", unit="img", disable=len(wanted) < 3 * size) as bar, held() as interrupted:
        for batch in made:
            interrupted()
            for _, reason in batch.unreadable:
                print(f"left out of the sheets, though it was scanned: {reason}", file=sys.stderr)
            pixels = normalise(batch.pixels, checkpoint.preprocess)
            tokens = np.asarray(forward(model, params, pixels, (options.stream,))[1][options.stream], np.float32)
            for place, index in enumerate(batch.index):
                for name in wanted.get(int(index), ()):
                    y = tokens[name.layer, place, special:]
                    directions = (x[name.layer, name.head, :, name.mode] for x in (u, v))
                    maps[int(index), name] = tuple(name.sign * (y @ d).reshape(grid) for d in directions)
                bar.update(int(index >= 0))
    return maps
