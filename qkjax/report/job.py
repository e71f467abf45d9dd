"""The job of `qkjax report`: results, and what they lack, to a folder that a browser opens."""

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from tqdm import tqdm

from qkjax.errors import QkjaxError
from qkjax.files import atomic_folder, check_replaceable
from qkjax.image import open_photo
from qkjax.images.photographs import photographs
from qkjax.images.sources import ImageSet, open_images
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interrupt import held
from qkjax.preprocess import Pixels, picture
from qkjax.report import model_card, page
from qkjax.report.attended import Attended, attended
from qkjax.report.map_tiles import map_tiles
from qkjax.report.pack import script
from qkjax.report.pictures import SIDES, small_pictures, webp
from qkjax.report.subject import Subject, subjects_of
from qkjax.scan import ScanOptions, resolution_of, seen_picture
from qkjax.top_images import found_images
from qkjax.vit.tree import attention

LOOKED_AT = 2
"""Images in which patches can be picked, where none is named: each takes about as much room as 100 pictures."""


class ReportOptions(NamedTuple):
    """What is shown.

    Attributes:
      top: images of each mode and sign.
      modes: of each head; None for all.
      look: images in which patches can be picked: files, or names of photographs; none for some of the set.
    """

    top: int = 9
    modes: int | None = None
    look: tuple[str, ...] = ()


def report(
    targets: tuple[str, ...], images: Path | None, out: Path | None, options: ReportOptions, settings: Mapping
) -> Path:
    """Writes a static site: index.html, and in `data` what it loads as it is looked at.

    A model that was not scanned yet is, as by `qkjax modes`. Passes can be interrupted, and go on.

    Returns:
      The page.

    Raises:
      QkjaxError: bad input, or a result cannot be written; what was done is kept, and an earlier report is untouched.
    """
    if options.top < 1 or (options.modes is not None and options.modes < 1):
        raise QkjaxError("--top and --modes are whole numbers from 1 up")
    subjects = subjects_of(targets, settings)
    out = out or (subjects[0].folder if len(subjects) == 1 else Path("results")) / "report"
    check_replaceable(out, *page.OURS)
    seen = open_images(images) if images else photographs()
    looked_at = [open_photo(name) for name in options.look]
    found = [_gather(subject, seen, options) for subject in subjects]
    with atomic_folder(out, *page.OURS) as folder:
        for place, gathered in enumerate(found):
            _write_model(folder / page.DATA / f"m{place}", gathered, seen, looked_at, options)
        page.write(folder, [subject.checkpoint.name for subject in subjects])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"wrote a report of {size / 1e6:.1f} MB: open {out / page.MARK} in a browser", file=sys.stderr)
    return out / page.MARK


class _Gathered(NamedTuple):
    """Of one model all that its pages are made of."""

    subject: Subject
    modes: Modes
    options: ScanOptions
    top: xr.Dataset
    maps: xr.Dataset


def _gather(subject: Subject, images: ImageSet, options: ReportOptions) -> _Gathered:
    checkpoint, folder = subject.checkpoint, subject.scanned
    modes = decompose(*attention(checkpoint.params)[:2])
    scan = _earlier_options(folder / "top_images.nc", images) or ScanOptions(top=options.top)
    top = found_images(checkpoint, modes, images, scan, folder, {"checkpoint": subject.where})
    shown = (min(options.modes or modes.s.shape[-1], modes.s.shape[-1]), min(options.top, top.sizes["place"]))
    return _Gathered(subject, modes, scan, top, map_tiles(checkpoint, modes, images, scan, top, shown, folder))


def _earlier_options(path: Path, images: ImageSet) -> ScanOptions | None:
    """Those of the scan whose result lies there; None without one.

    Raises:
      QkjaxError: it is of other images, or cannot be read.
    """
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            attrs = dict(data.attrs)
        was = json.loads(attrs["settings"])
        scores, top, resolution = (json.loads(was[name]) for name in ("scores", "top", "resolution"))
        batch, stream, dtype = int(was["batch"]), was["stream"], was["dtype"]
    except Exception as error:  # h5netcdf raises whatever it stumbles over
        raise QkjaxError(f"{path} is no result that can be read ({error}); remove it") from error
    if was["images"] != images.fingerprint:
        raise QkjaxError(
            f"{path} is of images {attrs['images']!r}, not of {images.name!r} as they are now: give their folder "
            "with --images, or remove it to have these scanned"
        )
    return ScanOptions(tuple(scores), top, stream, batch, tuple(resolution) if resolution else None, dtype)


def _write_model(folder: Path, found: _Gathered, images: ImageSet, looked_at: Sequence, options: ReportOptions) -> None:
    checkpoint = found.subject.checkpoint
    folder.mkdir(parents=True)
    resolution = resolution_of(checkpoint, found.options.resolution)

    def seen(photo: "PIL.Image.Image") -> Pixels:
        return seen_picture(checkpoint, picture(photo, checkpoint.preprocess, resolution))

    parts = attention(checkpoint.params)
    photos = looked_at or _some(images, found)
    names = [name for name, _ in photos]
    bias, terms = bias_terms(parts), []
    with held() as interrupted:
        for place, (_, photo) in enumerate(tqdm(photos, desc="images", unit="img", disable=len(photos) < 3)):
            pixels = seen(photo)
            terms.append(attended(checkpoint, found.modes, bias.key_direction, pixels))
            (folder / f"look{place}.webp").write_bytes(webp(pixels, SIDES[0], 85))
            _write_looked_at(folder, place, terms[-1])
            interrupted()
        _write_heads(folder, found, interrupted)
        index = found.top.image_index.values[0, :, :, : found.maps.sizes["mode"], :, : found.maps.sizes["place"]]
        missing = set(found.maps.left_out.values)
        wanted = [int(i) for i in np.unique(index[index >= 0]) if images.names[i] not in missing]
        (folder / "pictures").mkdir()
        with tqdm(total=len(wanted), desc="pictures", unit="img") as bar:
            for number, data in small_pictures(images, wanted, lambda i: seen(images.read(i))):
                (folder / "pictures" / f"{number}.webp").write_bytes(data)
                bar.update()
                interrupted()
    named = {"names": [str(name) for name in found.top.image.values]}
    (folder / "names.js").write_text(script(f"{folder.name}/names", named, {}))
    metrics, shares = measure(found.modes), _mean_shares(terms)
    facts = model_card.facts(checkpoint, found.subject.where, metrics, found.top, found.maps, names)
    facts["results"] = model_card.results_of(found.subject.folder, folder)
    arrays = model_card.arrays(metrics, bias, shares)
    (folder / "model.js").write_text(script(f"{folder.name}/model", facts, arrays))


def _some(images: ImageSet, found: _Gathered) -> list[tuple[str, "PIL.Image.Image"]]:
    """Some images of a set, evenly spaced, that could be read."""
    missing = {*found.maps.left_out.values, *found.top.unreadable.values}
    left = [i for i in range(len(images)) if images.names[i] not in missing]
    chosen = sorted({left[round(i * (len(left) - 1) / max(LOOKED_AT - 1, 1))] for i in range(LOOKED_AT)})
    return [(images.names[i], images.read(i)) for i in chosen]


def _mean_shares(terms: Sequence[Attended]) -> tuple[np.ndarray, np.ndarray]:
    """Of the modes and of the key bias, over images; NaN where an image gives none."""
    return tuple(np.mean([getattr(x, name) for x in terms], axis=0) for name in ("share", "bias_share"))


def _write_looked_at(folder: Path, place: int, terms: Attended) -> None:
    for layer in range(len(terms.bias)):
        own = {name: x[layer] for name, x in terms._asdict().items() if "share" not in name}
        key = f"{folder.name}/look{place}_L{layer:02d}"
        (folder / f"look{place}_L{layer:02d}.js").write_text(script(key, {}, own))


def _write_heads(folder: Path, found: _Gathered, interrupted) -> None:
    """A script for each head: which images excite its modes most, their scores, and the maps."""
    layers, heads, modes, _, places = found.maps.query_step.shape

    def write(at: tuple[int, int]) -> None:
        top = {
            name: found.top[name].values[(0, *at)][:modes, :, :places].astype(dtype)
            for name, dtype in (("image_index", np.int32), ("value", np.float32))
        }
        maps = {name: found.maps[name].values[at] for name in ("query_step", "key_step", "query_map", "key_map")}
        maps |= {name: maps[name].reshape(*maps[name].shape[:3], -1) for name in ("query_map", "key_map")}
        stem = "L{:02d}_H{:02d}".format(*at)
        (folder / f"{stem}.js").write_text(script(f"{folder.name}/{stem}", {}, top | maps))

    every = list(product(range(layers), range(heads)))
    with ThreadPoolExecutor() as pool, tqdm(total=len(every), desc="pages", unit="head") as bar:
        for _ in pool.map(write, every):  # zlib works outside Python's lock
            bar.update()
            interrupted()
