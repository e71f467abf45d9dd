"""The job of `qkjax modes`: the images of a set that excite each mode most, and sheets of them."""

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import xarray as xr
from tqdm import tqdm

from qkjax import figures
from qkjax.analyses.top_images.scan import ScanOptions, check, scan_images
from qkjax.analyses.top_images.sheets import sheets, table
from qkjax.analyses.top_images.tables import top_images_dataset
from qkjax.errors import QkjaxError
from qkjax.figures.sheets import top_images_sheet
from qkjax.images.photographs import photographs
from qkjax.images.sources import ImageSet, open_images
from qkjax.interaction.metrics import measure
from qkjax.interaction.mode_name import ModeName, chosen
from qkjax.interaction.modes import Modes, decompose
from qkjax.passes.inputs import for_photographs
from qkjax.passes.settings import settings_of
from qkjax.results.rows import list_unreadable, write_csv
from qkjax.results.store import read_earlier, write_dataset
from qkjax.runtime import hosts
from qkjax.runtime.files import make_folder, remove
from qkjax.runtime.interrupt import held
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.load import Checkpoint, load, origin

CHOSEN = "chosen"  # the page of modes that were named


class Shown(NamedTuple):
    """What is drawn: a sheet for each head with its first `modes`; of one layer or head alone if said;
    or, if any are named, one page of the modes of `select`."""

    modes: int = 5
    layer: int | None = None
    head: int | None = None
    select: tuple[str, ...] = ()


def top_images(
    model: str, path: Path | None, out: Path | None, options: ScanOptions, shown: Shown, settings: Mapping
) -> None:
    """Finds each mode's top images, writes top_images.nc, and draws sheets of them.

    A scan that is over is not done again: the sheets can be drawn anew.

    Raises:
      QkjaxError: bad input, or a result cannot be written; a scan keeps what it has done.
    """
    checkpoint = for_photographs(load(model, **settings))
    images = open_images(path) if path else photographs()
    check(checkpoint, options)
    layers, heads = checkpoint.config.depth, checkpoint.config.heads
    rank = min(checkpoint.config.width, checkpoint.config.head_dim)
    pages = _pages(shown, (layers, heads, rank))
    folder = out or Path("results") / checkpoint.name / "modes"
    modes = decompose(*query_key_kernels(checkpoint.params))
    data = found_images(checkpoint, modes, images, options, folder, origin(model, settings))
    if jax.process_index() == 0:
        _draw(checkpoint, modes, images, options, data, pages, folder)


def found_images(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    folder: Path,
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """What a scan finds, as `top_images_dataset` has it: read from top_images.nc in the folder, or written so.

    An earlier scan that kept more images of each mode will do: the first of them are returned.

    With several processes each has what it found; the first one writes.

    Args:
      modes: of the checkpoint, in the plain frame (no folding).
      attrs: what the file says besides.

    Raises:
      QkjaxError: no image can be read, an earlier result is of other settings, or a result cannot be written; the
        scan keeps what it has done.
    """
    make_folder(folder)
    settings = settings_of(checkpoint, images, options)
    first, several = jax.process_index() == 0, jax.process_count() > 1
    data = read_earlier(folder / "top_images.nc", settings, at_least=("top",)) if first else None
    so_far = hosts.own(folder / "scan.partial.npz")
    if not (hosts.gather_json(data is not None)[0] if several else data is not None):
        print(f"{checkpoint.name}: scanning {len(images)} images of {images.name}", file=sys.stderr)
        found = scan_images(checkpoint, modes, images, options, so_far, settings)
        attrs = {"model": checkpoint.name, "images": images.name, **attrs}
        data = top_images_dataset(found, images.names, measure(modes), attrs)
        if first:
            list_unreadable(data, folder / "unreadable.csv")
        if len(found.unreadable) == len(images):
            remove(so_far)
            raise QkjaxError(f"none of the {len(images)} images could be read; {folder / 'unreadable.csv'} says why")
        if first:
            write_dataset(data, folder / "top_images.nc")
            print(f"wrote {folder / 'top_images.nc'}", file=sys.stderr)
        if several:
            hosts.gather_json(None)  # what the others did is kept until the result of all is written
    remove(so_far)
    return data if data is None else data.isel(place=slice(options.top))


def _pages(shown: Shown, shape: tuple[int, int, int]) -> dict[str, list[ModeName]]:
    """The modes on each page, by the page's name."""
    if shown.select:
        return {CHOSEN: [ModeName.parse(text, shape) for text in shown.select]}
    if shown.modes < 1:
        raise QkjaxError("a sheet shows one mode or more: give another --sheet-modes")
    layers, heads = chosen("layer", shown.layer, shape[0]), chosen("head", shown.head, shape[1])
    modes = range(min(shown.modes, shape[2]))
    return {
        f"sheets/L{layer:02d}_H{head:02d}": [ModeName(layer, head, mode) for mode in modes]
        for layer, head in product(layers, heads)
    }


def _draw(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    data: xr.Dataset,
    pages: Mapping[str, Sequence[ModeName]],
    folder: Path,
) -> None:
    title = f"{checkpoint.name}: top images of each mode, of {images.name}; numbers: score ({data.score.values[0]})"
    # Sheets of all heads are to be leafed through: as PDF, too, they would take twice the time and space.
    formats = (".png", ".pdf") if CHOSEN in pages else (".png",)
    drawn = sheets(checkpoint, modes, images, options, data, pages)
    saved = figures.save_all(((folder / page, (title, rows)) for page, rows in drawn), top_images_sheet, formats)
    with held() as interrupted:
        for _ in tqdm(saved, total=len(pages), desc="drawing", unit="sheet", disable=len(pages) < 3):
            interrupted()
    lines = [{"page": page, **line} for page, names in pages.items() for line in table(data, names)]
    listed = folder / ("chosen.csv" if CHOSEN in pages else "sheets.csv")
    write_csv(lines, listed)
    print(f"wrote {listed.name} and {len(pages)} sheets to {folder}", file=sys.stderr)
