"""The job of `qkjax objects`: do the modes of a model join parts of one object, or two objects?"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.objects.objects_pass import ObjectOptions, find_objects
from qkjax.analyses.objects.tables import objects_dataset, objects_table
from qkjax.analyses.targets import by_name, folders
from qkjax.errors import QkjaxError
from qkjax.images.segmented import ObjectSet, mosaics, open_objects
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.passes.inputs import for_photographs, photograph_grid
from qkjax.passes.settings import settings_of
from qkjax.results.rows import format_rows, list_unreadable, write_csv
from qkjax.results.store import read_earlier, write_dataset
from qkjax.runtime.files import make_folder, remove
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.load import Checkpoint, load


class ObjectsWanted(NamedTuple):
    """Which images: a folder with masks, or, without one, so many composed scenes by a seed."""

    masks: Path | None = None
    count: int = 200
    seed: int = 0


def objects_of_models(
    models: tuple[str, ...], wanted: ObjectsWanted, out: Path | None, options: ObjectOptions, settings: Mapping
) -> dict[str, xr.Dataset]:
    """Looks at each model in turn; writes objects.nc, objects.csv and a figure into a folder of its own; several are
    overlaid.

    Returns:
      What is in the files objects.nc, by the models' names; see `objects_dataset`.

    Raises:
      QkjaxError: bad input, or a result cannot be written; what was done is kept.
    """
    checkpoints = by_name([for_photographs(load(name, **settings)) for name in models])
    for checkpoint in checkpoints.values():
        photograph_grid(checkpoint, options.resolution)  # or say at once why not
    if wanted.count < 1 or wanted.seed < 0:
        raise QkjaxError("--count is a whole number from 1 up, and --seed from 0 up")
    images = open_objects(wanted.masks) if wanted.masks else mosaics(wanted.count, wanted.seed)
    homes = folders(checkpoints, out, "objects")
    found = {name: _one(checkpoint, images, homes[name], options) for name, checkpoint in checkpoints.items()}
    if len(found) > 1:
        tables = {name: objects_table(dataset) for name, dataset in found.items()}
        for path in figures.save(figures.same_object_by_layer(tables), (out or Path("results")) / "same_object"):
            print(f"wrote {path}", file=sys.stderr)
    return found


def _one(checkpoint: Checkpoint, images: ObjectSet, folder: Path, options: ObjectOptions) -> xr.Dataset:
    make_folder(folder)
    how = settings_of(checkpoint, images, options)
    path, so_far = folder / "objects.nc", folder / "objects.partial.npz"
    dataset = read_earlier(path, how)
    if dataset is None:
        print(f"{checkpoint.name}: {len(images)} images of {images.name}", file=sys.stderr)
        modes = decompose(*query_key_kernels(checkpoint.params))
        found = find_objects(checkpoint, modes, images, options, so_far, how)
        if len(found.unreadable) == len(images):
            remove(so_far)
            raise QkjaxError(f"none of the {len(images)} images is of use: {found.unreadable[0][1]}")
        attrs = {"model": checkpoint.name, "images": images.name, "settings": json.dumps(how)}
        dataset = objects_dataset(found, images, measure(modes), attrs)
        write_dataset(dataset, path)
    remove(so_far)
    list_unreadable(dataset, folder / "unreadable.csv")
    rows = objects_table(dataset)
    write_csv(rows, folder / "objects.csv")
    used = int(np.count_nonzero(dataset.objects))
    print(f"{checkpoint.name}, {used} images of {images.name}\n{format_rows(rows)}", flush=True)
    figures.save(figures.same_object_by_layer({checkpoint.name: rows}), folder / "same_object")
    print(f"wrote objects.nc, objects.csv and a figure (png, pdf) to {folder}", file=sys.stderr)
    return dataset
