"""Writes the result of `top_images` to a folder, and draws sheets of the top images."""

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import xarray as xr
from tqdm import tqdm

from qkjax import figures
from qkjax.activations.project import Stream
from qkjax.analyses.decomposition import modes_per_head
from qkjax.analyses.outcome import Description, Written, outcome, report_unreadable
from qkjax.analyses.top_images.compute import MAPPED, check, maps_for, scan_settings, top_images
from qkjax.analyses.top_images.sheets import sheets
from qkjax.analyses.top_images.tables import MAP_NAMES, check_dataset, mode_table, summary
from qkjax.errors import QkjaxError
from qkjax.figures.sheets import top_images_sheet
from qkjax.images.sets import ImageSet
from qkjax.interaction.mode_name import ModeName, requested_indices
from qkjax.passes.inputs import for_photographs
from qkjax.passes.options import PassOptions
from qkjax.results.rows import write_csv
from qkjax.runtime.files import discard, temporaries
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.runtime.lock import exclusive_here
from qkjax.weights.checkpoint import Checkpoint

SELECTED = "chosen"  # name of the page with the modes that the user selected by name


class SheetOptions(NamedTuple):
    """Options for sheets of top images.

    Attributes:
      modes: number of modes per head, strongest first.
      layer, head: the only layer or head to draw; None for all.
      select: names of modes to draw on one page; the sheets of heads are then not drawn.
    """

    modes: int = MAPPED
    layer: int | None = None
    head: int | None = None
    select: tuple[str, ...] = ()


class ScanOptions(NamedTuple):
    """The arguments of `top_images`, except for checkpoint and images."""

    top: int = 9
    scores: tuple[str, ...] = ("product",)
    stream: Stream = "norm"
    options: PassOptions = PassOptions()


def write_top_images(
    checkpoint: Checkpoint,
    images: ImageSet,
    scan: ScanOptions,
    folder: Path,
    attrs: Mapping[str, str],
    *,
    maps: int = MAPPED,
    fresh: bool = False,
) -> Written:
    """Reads the result of `top_images` from top_images.nc in a folder, or computes and writes the result.

    If an earlier result has more images per mode than requested, the function returns the first images of each mode.

    Args:
      checkpoint: the checkpoint.
      images: the image set.
      scan: the arguments of `top_images`.
      folder: folder for the result.
      attrs: additional attributes for the file.
      maps: number of modes of each head for which the returned dataset contains maps, if the result is newly computed
        and the maps take at most 512 MB. The file contains the maps of the first 5 modes.
      fresh: whether to discard an earlier result and the progress of an interrupted pass.

    Returns:
      The result, on every host.

    Raises:
      QkjaxError: no image is readable, an earlier result has different settings, or a file cannot be written.
    """
    checkpoint = for_photographs(checkpoint)
    check(checkpoint, scan.top, scan.scores, scan.options)
    computed: list[xr.Dataset] = []

    def compute(partial: Path) -> xr.Dataset:
        print(f"{checkpoint.name}: scanning {len(images)} images of {images.name}", file=sys.stderr)
        count = maps_for(checkpoint, len(images), scan.top, maps, scan.options, partial)
        dataset = top_images(
            checkpoint, images, top=scan.top, scores=scan.scores, stream=scan.stream, options=scan.options, maps=count,
            partial=partial,
        )  # fmt: skip
        report_unreadable(dataset, folder)
        computed.append(dataset)
        return dataset.isel(mapped_mode=slice(MAPPED), missing_dims="ignore")

    def description(dataset: xr.Dataset) -> Description:
        check_dataset(dataset, checkpoint.config.depth, checkpoint.config.heads, modes_per_head(checkpoint))
        return Description("", [], {}, {})

    written = outcome(
        folder,
        "top_images",
        scan_settings(checkpoint, images, *scan),
        compute,
        description,
        at_least=("top",),
        attrs=attrs,
        fresh=fresh,
        shard=scan.options.shard,
    )
    dataset = written.dataset.isel(place=slice(scan.top))
    if computed and maps > MAPPED and "mapped_mode" in dataset.dims:
        dataset = dataset.drop_dims("mapped_mode").assign({name: computed[0][name] for name in MAP_NAMES})
    return written._replace(dataset=dataset.assign_attrs(summary=summary(dataset)))


def pages_of(shown: SheetOptions, shape: tuple[int, int, int]) -> dict[str, list[ModeName]]:
    """A dict from the name of each page to the modes on this page.

    Args:
      shown: options for the sheets.
      shape: number of layers, of heads per layer, and of modes per head.

    Raises:
      QkjaxError: a mode, layer or head does not exist, or the number of modes is below 1.
    """
    if shown.select:
        return {SELECTED: [ModeName.parse(text, shape) for text in shown.select]}
    if shown.modes < 1:
        raise QkjaxError(f"sheet_modes={shown.modes}: expected a whole number of at least 1")
    layers, heads = requested_indices("layer", shown.layer, shape[0]), requested_indices("head", shown.head, shape[1])
    modes = range(min(shown.modes, shape[2]))
    return {
        f"sheets/L{layer:02d}_H{head:02d}": [ModeName(layer, head, mode) for mode in modes]
        for layer, head in product(layers, heads)
    }


def draw_pages(
    checkpoint: Checkpoint,
    images: ImageSet,
    dataset: xr.Dataset,
    pages: Mapping[str, Sequence[ModeName]],
    folder: Path,
) -> Path:
    """On the first host, draws the sheets and writes a table of their images; returns the path of the table."""
    path = folder / ("chosen.csv" if SELECTED in pages else "sheets.csv")
    if jax.process_index():
        return path
    title = f"{checkpoint.name}: top images of each mode in {images.name}; numbers: score ({dataset.score.values[0]})"
    # Sheets of all heads are only for browsing. They are not saved as PDF too, which would double time and disk space.
    formats = (".png", ".pdf") if SELECTED in pages else (".png",)
    drawn = sheets(checkpoint, images, dataset, pages)
    jobs = ((folder / page, (title, rows)) for page, rows in drawn)
    saved = figures.save_all(jobs, len(pages), top_images_sheet, formats)
    with exclusive_here(folder), deferred_interrupt() as check_interrupt:
        for _ in tqdm(saved, total=len(pages), desc="drawing", unit="sheet", disable=len(pages) < 3):
            check_interrupt()
        discard(temporaries(folder / f"{page}{suffix}" for page in pages for suffix in formats))
    lines = [{"page": page, **line} for page, names in pages.items() for line in mode_table(dataset, names)]
    write_csv(lines, path)
    print(f"wrote {path.name} and {len(pages)} sheets to {folder}", file=sys.stderr)
    return path


def earlier_folder(home: Path) -> Path:
    """The folder of top_images.nc within the results of a model.

    The folder is `top_images`. If only the folder `modes` contains this file, as in results of version 0.1, the folder
    is `modes`.
    """
    folders = home / "top_images", home / "modes"
    return next((folder for folder in folders if (folder / "top_images.nc").exists()), folders[0])
