"""Writes the result of `attribute_logits`, and contact sheets of the modes with the largest shares, to a folder."""

import sys
from pathlib import Path
from typing import NamedTuple

import xarray as xr
from tqdm import tqdm

from qkjax import figures
from qkjax.activations.project import Stream
from qkjax.analyses.image import attribute_logits, open_photo, query_key_maps, visible_picture
from qkjax.analyses.image_tables import Contribution, contact_rows, head_rows, layer_rows, mode_rows
from qkjax.analyses.outcome import Description, Written, outcome
from qkjax.errors import QkjaxError
from qkjax.figures.overlay import with_windows
from qkjax.interaction.mode_name import requested_indices
from qkjax.passes.inputs import for_photographs, photograph_grid
from qkjax.results.rows import format_rows
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.vit.windows import layer_windows
from qkjax.weights.checkpoint import Checkpoint


class ImageSheets(NamedTuple):
    """Options for the contact sheets of an image.

    Attributes:
      layer, head: the only layer or head to draw; None for all.
      top: number of modes per head.
      contribution: kind of share by which modes are ranked; see `qkjax.activations.contribution.contributions`.
      stream: tokens from which the maps are computed. This option does not affect the shares, which are always computed
        from the output of the LayerNorm.
      resolution: (height, width) in pixels; None for the checkpoint's own resolution.
    """

    layer: int | None = None
    head: int | None = None
    top: int = 6
    contribution: Contribution = "variance"
    stream: Stream = "norm"
    resolution: tuple[int, int] | None = None


def write_image(checkpoint: Checkpoint, photo: str, folder: Path | None, shown: ImageSheets) -> tuple[str, Written]:
    """Writes contributions.nc, contributions.csv, heads.csv and a contact sheet for each layer (png, pdf).

    Args:
      checkpoint: the checkpoint.
      photo: path of an image file, or name of a default photograph.
      folder: folder for the results; by default results/MODEL/images/IMAGE.
      shown: options for the contact sheets.

    Returns:
      The name of the image, and the result.

    Raises:
      QkjaxError: the input is invalid, or a result cannot be written.
    """
    checkpoint = for_photographs(checkpoint)
    layers = requested_indices("layer", shown.layer, checkpoint.config.depth)
    requested_indices("head", shown.head, checkpoint.config.heads)
    photograph_grid(checkpoint, shown.resolution)
    if shown.top < 1:
        raise QkjaxError(f"top={shown.top}: expected a whole number of at least 1")
    name, photograph = open_photo(photo)
    folder = folder or Path("results") / checkpoint.name / "images" / (name.strip(".") or "image")

    def compute(_: Path) -> xr.Dataset:
        return attribute_logits(checkpoint, photograph, resolution=shown.resolution).assign_attrs(image=name)

    def describe(dataset: xr.Dataset) -> Description:
        rows = layer_rows(dataset, shown.contribution, shown.top)
        tables = {"contributions": mode_rows(dataset, shown.contribution), "heads": head_rows(dataset)}
        return Description(format_rows(rows), rows, tables, {})

    written = outcome(folder, "contributions", None, compute, describe)
    _draw(checkpoint, name, photograph, written.dataset, layers, shown, folder)
    print(f"wrote {len(layers)} sheets (png, pdf) to {folder}", file=sys.stderr)
    return name, written


def _draw(checkpoint, name: str, photograph, dataset: xr.Dataset, layers: range, shown: ImageSheets, folder: Path):
    """Draws and saves a contact sheet for each layer."""
    heads = requested_indices("head", shown.head, checkpoint.config.heads)
    pixels = visible_picture(checkpoint, photograph, shown.resolution)
    maps = query_key_maps(checkpoint, photograph, stream=shown.stream, resolution=shown.resolution)
    how = {"top": shown.top, "contribution": shown.contribution}
    side = tuple(checkpoint.config.window * n for n in checkpoint.config.patch_size)
    with deferred_interrupt() as check_interrupt:
        for layer in tqdm(layers, desc="drawing", unit="sheet", disable=len(layers) < 3):
            within = layer_windows(checkpoint.config, maps.query.shape[2:4], layer) is not None
            shown_pixels = with_windows(pixels, side) if within else pixels
            rows = contact_rows(dataset, maps, shown_pixels, layer, heads, **how)
            title = f"{checkpoint.name}, layer {layer}, {name}: modes with the largest share of the logits' variance"
            title += {"variance": "", "attention": ", attention-weighted"}[shown.contribution]
            title += "\nqueries attend only to keys in the same window (white lines)" * within
            figures.save(figures.contact_sheet(title, shown_pixels, rows), folder / f"layer_{layer:02d}")
            check_interrupt()
