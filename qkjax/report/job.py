"""Implements `qkjax report`: computes missing results of one or more models, and writes a static site."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import xarray as xr

from qkjax.analyses.decomposition import decompose
from qkjax.analyses.image import open_photo
from qkjax.analyses.outcome import print_notes
from qkjax.analyses.top_images.pages import ScanOptions, write_top_images
from qkjax.analyses.top_images.sheets import options_of
from qkjax.errors import QkjaxError
from qkjax.images.default_set import photographs
from qkjax.images.sets import ImageSet
from qkjax.images.sources import open_images
from qkjax.passes.inputs import whole_grid
from qkjax.report import page
from qkjax.report.map_tiles import map_tiles
from qkjax.report.model_pages import write_model
from qkjax.report.subject import ModelData, Subject, attributes, subjects_of
from qkjax.results.store import stated_settings
from qkjax.runtime import hosts
from qkjax.runtime.files import atomic_folder, check_replaceable
from qkjax.runtime.folders import check_folder
from qkjax.runtime.lock import exclusive_here

LARGE = 100e6
"""If a model's pages are larger than this number of bytes, the program prints how to make the report smaller."""


class ReportOptions(NamedTuple):
    """Options for the content of the site.

    Attributes:
      top: number of images per mode and sign.
      modes: number of modes per head; None for all modes.
      look: image files, or names of photographs, in which the reader can pick a patch to see where it attends. If
        empty, some images of the image set are used.
    """

    top: int = 9
    modes: int | None = None
    look: tuple[str, ...] = ()


def report(
    targets: tuple[str, ...],
    images: Path | None,
    out: Path | None,
    options: ReportOptions,
    settings: Mapping,
    *,
    fresh: bool = False,
) -> Path:
    """Writes a static site: index.html, and the folder `data` with files that the page loads on demand.

    If a model has no result of `top_images`, this result is computed first. An interrupted computation resumes. With
    `fresh`, earlier results of `top_images`, their maps, and the progress of an interrupted computation are discarded.
    With several hosts, all hosts compute, and the first host writes.

    Returns:
      The path of index.html.

    Raises:
      QkjaxError: the input is invalid, or a result cannot be written. Finished computations stay on disk, and an
        earlier report stays unchanged.
    """
    if options.top < 1 or (options.modes is not None and options.modes < 1):
        name, value = ("top", options.top) if options.top < 1 else ("modes", options.modes)
        raise QkjaxError(f"{name}={value}: expected a whole number of at least 1")
    check_folder(out or Path("results"))
    subjects = subjects_of(targets, settings)
    out = out or (subjects[0].folder if len(subjects) == 1 else Path("results")) / "report"
    check_replaceable(out, *page.OURS)
    image_set = open_images(images) if images else photographs()
    print_notes(image_set)
    photos = [open_photo(name) for name in options.look]
    models = [_gather(subject, image_set, images, options, fresh) for subject in subjects]
    if jax.process_index():
        return out / page.MARK
    with exclusive_here(out.parent), atomic_folder(out, *page.OURS) as folder:
        sizes = [write_model(folder / page.DATA / f"m{i}", data, image_set, photos) for i, data in enumerate(models)]
        page.write(folder, len(subjects))
    advice = "; use fewer modes, or fewer images per mode, for a smaller report" if max(sizes) > LARGE else ""
    print(f"wrote a report of {sum(sizes) / 1e6:.1f} MB{advice}: open {out / page.MARK} in a browser", file=sys.stderr)
    return out / page.MARK


def _gather(subject: Subject, images: ImageSet, path: Path | None, options: ReportOptions, fresh: bool) -> ModelData:
    checkpoint, folder = subject.checkpoint, subject.scan_folder
    modes = decompose(checkpoint)
    defaults = ScanOptions()
    scan = None if fresh else _earlier_scan(folder / "top_images.nc", images)
    scan = scan or defaults._replace(top=max(options.top, defaults.top))
    whole_grid(checkpoint, scan.options.resolution, "the page shows where a patch attends, at the size of top-images")
    shown = min(options.modes or modes.s.shape[-1], modes.s.shape[-1])
    top = write_top_images(checkpoint, images, scan, folder, subject.origin, maps=shown, fresh=fresh).dataset
    if top.sizes["place"] < min(options.top, len(images)):
        print(
            f"{subject.name}: the result in {folder} has {top.sizes['place']} images per mode; "
            f"pass fresh=True to compute {options.top} images per mode",
            file=sys.stderr,
        )
    counts = (shown, min(options.top, top.sizes["place"]))
    maps = map_tiles(checkpoint, modes, images, top, counts, folder, fresh=fresh)
    return ModelData(subject, modes, scan, path, top, maps)


def _earlier_scan(path: Path, images: ImageSet) -> ScanOptions | None:
    """The options of an earlier image scan whose result is on the first host's disk, or None if there is no result.

    Every host gets the same options.

    Raises:
      QkjaxError: the scan used different images, or its result cannot be read.
    """
    attrs = hosts.on_first_host(lambda: attributes(path) if path.exists() else None)
    if jax.process_count() > 1:
        attrs = hosts.gather_json(attrs and {name: str(value) for name, value in attrs.items()})[0]
    if attrs is None:
        return None
    try:
        settings = stated_settings(attrs, path)
        scores, top = (json.loads(settings[name]) for name in ("scores", "top"))
        if type(top) is not int or not (isinstance(scores, list) and all(isinstance(name, str) for name in scores)):
            raise ValueError(f"top={top!r}, scores={scores!r}")
        stream, options = options_of(xr.Dataset(attrs=attrs))
        fingerprint = settings["images"]
    except (KeyError, ValueError, TypeError, QkjaxError) as error:
        raise QkjaxError(f"{path} does not state its settings ({error!r}); remove the file") from error
    if fingerprint != images.fingerprint:
        raise QkjaxError(
            f"{path} is a result for the images {attrs.get('images')!r}: expected {images.name!r} with its current "
            "content; pass the folder of the earlier images as images=..., or fresh=True to scan the new images"
        )
    return ScanOptions(top, tuple(scores), stream, options)
