"""The job of `qkjax report`: results, and what they lack, to a folder that a browser opens."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import xarray as xr

from qkjax.analyses.image import open_photo
from qkjax.analyses.outcome import print_notes
from qkjax.analyses.top_images.pages import ScanOptions, write_top_images
from qkjax.analyses.top_images.sheets import options_of
from qkjax.errors import QkjaxError
from qkjax.images.default_set import photographs
from qkjax.images.sets import ImageSet
from qkjax.images.sources import open_images
from qkjax.interaction.modes import decompose
from qkjax.report import page
from qkjax.report.map_tiles import map_tiles
from qkjax.report.model_pages import write_model
from qkjax.report.subject import ModelData, Subject, attributes, subjects_of
from qkjax.runtime import hosts
from qkjax.runtime.files import atomic_folder, check_replaceable
from qkjax.vit.tree import query_key

LARGE = 100e6
"""Bytes of a model's pages above which it is said how to have less."""


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

    A model without a scan is scanned first, as by `top_images`. Interrupted passes resume. With several hosts all of
    them compute, and the first one writes.

    Returns:
      The page.

    Raises:
      QkjaxError: bad input, or a result cannot be written; what was done is kept, and an earlier report is untouched.
    """
    if options.top < 1 or (options.modes is not None and options.modes < 1):
        name, value = ("top", options.top) if options.top < 1 else ("modes", options.modes)
        raise QkjaxError(f"{name}={value}: expected a whole number from 1 up")
    subjects = subjects_of(targets, settings)
    out = out or (subjects[0].folder if len(subjects) == 1 else Path("results")) / "report"
    check_replaceable(out, *page.OURS)
    seen = open_images(images) if images else photographs()
    print_notes(seen)
    looked_at = [open_photo(name) for name in options.look]
    found = [_gather(subject, seen, images, options) for subject in subjects]
    if jax.process_index():
        return out / page.MARK
    with atomic_folder(out, *page.OURS) as folder:
        sizes = [write_model(folder / page.DATA / f"m{i}", x, seen, looked_at) for i, x in enumerate(found)]
        page.write(folder, len(subjects))
    advice = "; with fewer modes, or fewer images of each, it is smaller" if max(sizes) > LARGE else ""
    print(f"wrote a report of {sum(sizes) / 1e6:.1f} MB{advice}: open {out / page.MARK} in a browser", file=sys.stderr)
    return out / page.MARK


def _gather(subject: Subject, images: ImageSet, path: Path | None, options: ReportOptions) -> ModelData:
    checkpoint, folder = subject.checkpoint, subject.scanned
    modes = decompose(*query_key(checkpoint.params)[:2])
    usual = ScanOptions()
    scan = _earlier_scan(folder / "top_images.nc", images) or usual._replace(top=max(options.top, usual.top))
    top = write_top_images(checkpoint, images, scan, folder, subject.origin).dataset
    if top.sizes["place"] < min(options.top, len(images)):
        print(
            f"{subject.name}: {top.sizes['place']} images of each mode, as the scan in {folder} kept; "
            f"remove its top_images.nc to have {options.top}",
            file=sys.stderr,
        )
    shown = (min(options.modes or modes.s.shape[-1], modes.s.shape[-1]), min(options.top, top.sizes["place"]))
    return ModelData(subject, modes, scan, path, top, map_tiles(checkpoint, modes, images, top, shown, folder))


def _earlier_scan(path: Path, images: ImageSet) -> ScanOptions | None:
    """How the scan was made whose result the first host has; None without one. The same on every host.

    Raises:
      QkjaxError: it is of other images, or cannot be read.
    """
    attrs = attributes(path) if path.exists() and not jax.process_index() else None
    if jax.process_count() > 1:
        attrs = hosts.gather_json(attrs and {name: str(value) for name, value in attrs.items()})[0]
    if attrs is None:
        return None
    try:
        settings = json.loads(attrs["settings"])
        scores, top = (json.loads(settings[name]) for name in ("scores", "top"))
        stream, options = options_of(xr.Dataset(attrs=attrs))
        fingerprint = settings["images"]
    except (KeyError, ValueError, TypeError) as error:
        raise QkjaxError(f"{path} does not say how it was made ({error!r}); remove it") from error
    if fingerprint != images.fingerprint:
        raise QkjaxError(
            f"{path} is of images {attrs.get('images')!r}, not of {images.name!r} as they are now: give their folder "
            "as images=..., or remove it to have these scanned"
        )
    return ScanOptions(top, tuple(scores), stream, options)
