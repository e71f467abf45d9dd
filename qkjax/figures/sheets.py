"""Draws sheets of pictures: the top images of modes, or the modes that contribute most to attention in one image."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qkjax.figures.overlay import LIMITS, Map, Picture, map_pixels, overlay
from qkjax.figures.style import DPI, WIDTH, literal, styled

GAP = 0.06  # gap between tiles, as a share of a tile's width
PAPER = 255
KEY = (
    Patch(facecolor="#FF0000", label="query map"),
    Patch(facecolor="#00FFFF", label="key map"),
    Patch(facecolor="white", edgecolor="black", linewidth=0.5, label="both"),
)


class Tile(NamedTuple):
    """A tile for one image and one mode: the picture that the model sees, the query map, the key map, and a caption."""

    picture: Picture
    query_map: Map
    key_map: Map
    caption: str


class SheetRow(NamedTuple):
    """A row of a sheet, which has a label on the left, and tiles."""

    label: str
    tiles: Sequence[Tile]


def top_images_sheet(title: str, rows: Sequence[SheetRow]) -> Figure:
    """Draws one row per mode, which shows the top images of the mode, highest score first (the paper, figure 4).

    Each tile shows the picture and, below it, a grey copy with the query map in red and the key map in cyan. Each map
    is scaled between its percentiles `LIMITS`. The caption is the score.
    """
    return _mosaic(title, rows, lambda tile: np.concatenate([tile.picture, overlay(*tile[:3])]))


def contact_sheet(title: str, picture: Picture, rows: Sequence[SheetRow]) -> Figure:
    """Draws one row per head, with the modes that contribute most to the head's logits (the paper, figure 5).

    Each row starts with the picture. The upper half of each tile shows both maps over the picture (see
    `top_images_sheet`), and the lower half shows the query map and the key map separately.
    """
    nothing = np.zeros((1, 1))
    first = Tile(picture, nothing, nothing, "")

    def draw(tile: Tile) -> Picture:
        height, width, _ = tile.picture.shape
        below = np.full((height - height // 2, width, 3), PAPER, np.uint8)
        if tile.query_map is nothing:
            return np.concatenate([tile.picture, below])
        query, key = (
            map_pixels(values, tile.picture.shape, channels)[::2, ::2]
            for values, channels in ((tile.query_map, (0,)), (tile.key_map, (1, 2)))
        )
        below[:, : query.shape[1]], below[:, width - key.shape[1] :] = query, key
        return np.concatenate([overlay(*tile[:3]), below])

    return _mosaic(title, [SheetRow(row.label, [first, *row.tiles]) for row in rows], draw)


def _mosaic(title: str, rows: Sequence[SheetRow], draw: Callable[[Tile], Picture]) -> Figure:
    """Draws all tiles as one image, at the resolution of the page, because drawing a hundred axes would take minutes.

    All tiles must have the same shape.

    Args:
      draw: function that returns the pixels of a tile. The tile's picture is already resized for the page.
    """
    columns = max(len(row.tiles) for row in rows)
    left, top, bottom = 0.75, 0.25, 0.45  # inches for the labels, the title and the colour key
    inches = (WIDTH - left) / max(columns, 5)
    gap = round(GAP * inches * DPI)
    width = min(round(inches * DPI) - gap, rows[0].tiles[0].picture.shape[1])
    rows = [row._replace(tiles=[_resized(tile, width) for tile in row.tiles]) for row in rows]
    height = len(draw(rows[0].tiles[0]))
    lines = max(tile.caption.count("\n") + 1 for row in rows for tile in row.tiles)
    above = round(0.17 * width * lines)  # space for a caption
    canvas = np.full((len(rows) * (height + above + gap), columns * (width + gap) - gap, 3), PAPER, np.uint8)
    scale = inches / (width + gap)  # inches per pixel
    size = (left + canvas.shape[1] * scale, canvas.shape[0] * scale)
    with styled():
        figure = Figure(figsize=(size[0], size[1] + top + bottom))
        total = figure.get_figheight()
        axes = figure.add_axes((left / size[0], bottom / total, 1 - left / size[0], size[1] / total))
        font = min(7.5, 72 * 0.13 * width * scale)
        for i, row in enumerate(rows):
            y = i * (height + above + gap) + above
            axes.text(-gap, y, literal(row.label), ha="right", va="top", fontsize=6.5, linespacing=1.35)
            for j, tile in enumerate(row.tiles):
                x = j * (width + gap)
                canvas[y : y + height, x : x + width] = draw(tile)
                axes.text(x, y - gap / 3, literal(tile.caption), va="bottom", fontsize=font, linespacing=1.1)
        axes.imshow(canvas, interpolation="nearest", alpha=1)  # without alpha, matplotlib would compute in float64
        axes.axis("off")
        figure.text(0, 1, literal(title), va="top", fontsize=8)
        key = figure.legend(handles=KEY, loc="lower left", ncols=3, frameon=False, fontsize=7, handlelength=1)
        key.set_bbox_to_anchor((-0.01, 0.07 / total), figure.transFigure)
        scale_note = (
            f"brightness of each map: its {LIMITS[0]}th percentile (dark) to its {LIMITS[1]}th (bright) in each image"
        )
        figure.text(0.01, 0, scale_note, va="bottom", fontsize=6.5)
        return figure


def _resized(tile: Tile, width: int) -> Tile:
    """Returns the tile with its picture resized to a width."""
    if tile.picture.shape[1] == width:
        return tile
    from PIL import Image

    height = round(len(tile.picture) * width / tile.picture.shape[1])
    resized = Image.fromarray(tile.picture).resize((width, height), Image.Resampling.LANCZOS)
    return tile._replace(picture=np.asarray(resized))
