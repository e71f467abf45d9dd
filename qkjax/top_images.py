"""The job of `qkjax modes`: the images of a set that excite each mode most, and sheets of them."""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

from qkjax import figures, hosts, results
from qkjax.errors import QkjaxError
from qkjax.figures.sheets import Row, Tile
from qkjax.files import remove
from qkjax.images.ahead import batches
from qkjax.images.photographs import photographs
from qkjax.images.sources import ImageSet, open_images
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interaction.name import ModeName, chosen
from qkjax.preprocess import normalise, picture
from qkjax.scan import ScanOptions, batch_size, check, scan, settings_of
from qkjax.vit.model import ViT, forward
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.load import Checkpoint, load


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
    checkpoint = load(model, **settings)
    images = open_images(path) if path else photographs()
    check(checkpoint, options)
    layers, heads = checkpoint.config.depth, checkpoint.config.heads
    rank = min(checkpoint.config.width, checkpoint.config.head_dim)
    pages = _pages(shown, (layers, heads, rank))
    folder = out or Path("results") / checkpoint.name / "modes"
    modes = decompose(*query_key_kernels(checkpoint.params))
    first, several = jax.process_index() == 0, jax.process_count() > 1
    data = _finished(folder / "top_images.nc", settings_of(checkpoint, images, options)) if first else None
    if not (hosts.gather_json(data is not None)[0] if several else data is not None):
        print(f"{checkpoint.name}: scanning {len(images)} images of {images.name}", file=sys.stderr)
        so_far = hosts.own(folder / "scan.partial.npz")
        found = scan(checkpoint, modes, images, options, so_far)
        attrs = {"model": checkpoint.name, "images": images.name}
        data = results.top_images_dataset(found, images.names, measure(modes), attrs)
        if first:
            results.write_dataset(data, folder / "top_images.nc")
            print(f"wrote {folder / 'top_images.nc'}", file=sys.stderr)
        if several:
            hosts.gather_json(None)  # what the others did is kept until the result of all is written
        remove(so_far)
    if first:
        _report(data, folder)
        _draw(checkpoint, modes, images, options, data, pages, folder)


def _finished(path: Path, settings: Mapping[str, str]) -> xr.Dataset | None:
    """The result of an earlier scan that was the same in all that counts."""
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            same = json.loads(data.attrs["settings"]) == settings
            return data.load() if same else None
    except Exception:  # h5netcdf raises whatever it stumbles over; the scan writes the file anew
        return None


def _report(data: xr.Dataset, folder: Path) -> None:
    if broken := [str(name) for name in data.unreadable.values]:
        rows = [{"image": n, "reason": str(r)} for n, r in zip(broken, data.reason.values, strict=True)]
        results.write_csv(rows, folder / "unreadable.csv")
        print(f"{len(broken)} images could not be read; {folder / 'unreadable.csv'} says why", file=sys.stderr)


def _pages(shown: Shown, shape: tuple[int, int, int]) -> dict[str, list[ModeName]]:
    """The modes on each page, by the page's name."""
    if shown.select:
        return {"chosen": [ModeName.parse(text, shape) for text in shown.select]}
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
    """Draws the pages from the first score that was looked for."""
    values, indices = (data[name].values[0] for name in ("value", "image_index"))

    def signed(name: ModeName) -> ModeName:  # where the sign is left open, the one that is excited more
        best = values[name[:3]][:, 0]
        return name if name.sign else name._replace(sign=1 if best[0] >= best[1] else -1)

    def top(name: ModeName) -> list[tuple[int, float]]:
        place = (*name[:3], 0 if name.sign > 0 else 1)
        return [(int(i), float(v)) for i, v in zip(indices[place], values[place], strict=True) if i >= 0]

    pages = {page: [signed(name) for name in names] for page, names in pages.items()}
    wanted = defaultdict(list)
    for name in {name for names in pages.values() for name in names}:
        for index, _ in top(name):
            wanted[index].append(name)
    maps = mode_maps(checkpoint, modes, images, wanted, options)
    grid = check(checkpoint, options)

    @lru_cache(maxsize=512)
    def seen(index: int) -> np.ndarray:
        whole = picture(images.read(index), checkpoint.preprocess, options.resolution)
        return whole[: grid[0] * checkpoint.config.patch_size[0], : grid[1] * checkpoint.config.patch_size[1]]

    rows = []
    for page, names in tqdm(pages.items(), desc="drawing", unit="sheet", disable=len(pages) < 3):
        lines = []
        for name in names:
            s, cosine = (float(data[x].values[name[:3]]) for x in ("singular_value", "cosine"))
            tiles = [Tile(seen(i), *maps[i, name], f"{v:.3g}") for i, v in top(name)]
            lines.append(Row(f"{name}\ncos {cosine:.2f}\ns {s:.3g}", tiles))
            rows += [
                {"page": page, **name._asdict(), "cosine": cosine, "singular_value": s, "place": place,
                 "score": v, "image": images.names[i]}
                for place, (i, v) in enumerate(top(name))
            ]  # fmt: skip
        lines = [line for line in lines if line.tiles]
        if lines:
            score = str(data.score.values[0])
            title = (
                f"{checkpoint.name}: the images (of: {images.name}) that excite a mode most; above, their {score} score"
            )
            figures.save(figures.top_images_sheet(title, lines), folder / page)
    if rows:
        results.write_csv(rows, folder / "sheets.csv")
        print(f"wrote sheets.csv and {len(pages)} sheets (png, pdf) to {folder}", file=sys.stderr)


def mode_maps(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    wanted: Mapping[int, Sequence[ModeName]],
    options: ScanOptions,
) -> dict[tuple[int, ModeName], tuple[np.ndarray, np.ndarray]]:
    """Query and key map, each (rows, columns), of some modes on some images; for sign -1 both negated.

    Args:
      wanted: names of modes by the number of the image in the set.

    Raises:
      QkjaxError: an image cannot be read (any more).
    """
    model, params = ViT(checkpoint.config, options.dtype), jax.device_put(checkpoint.params)
    grid, size = check(checkpoint, options), batch_size(options)
    u, v = np.asarray(modes.u), np.asarray(modes.v)
    special, maps = checkpoint.config.prefix_tokens, {}
    indices = sorted(wanted)
    groups = [indices[i : i + size] for i in range(0, len(indices), size)]
    made = batches(images, groups, size, checkpoint.preprocess, options.resolution)
    with tqdm(total=len(wanted), desc="maps", unit="img", disable=len(wanted) < 3 * size) as bar:
        for batch in made:
            for _, reason in batch.unreadable:
                raise QkjaxError(reason)
            pixels = normalise(batch.pixels, checkpoint.preprocess)
            tokens = np.asarray(forward(model, params, pixels, (options.stream,))[1][options.stream], np.float32)
            for place, index in enumerate(i for i in batch.index if i >= 0):
                for name in wanted[index]:
                    y = tokens[name.layer, place, special:]
                    directions = (x[name.layer, name.head, :, name.mode] for x in (u, v))
                    maps[int(index), name] = tuple(name.sign * (y @ d).reshape(grid) for d in directions)
                bar.update(1)
    return maps
