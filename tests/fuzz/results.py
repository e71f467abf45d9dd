"""Results in netCDF, which qkjax reads instead of computing them again, and in reports."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import xarray as xr
from hypothesis import strategies as st

from qkjax.analyses.top_images.pages import ScanOptions, SheetOptions, draw_pages, pages_of, write_top_images
from qkjax.analyses.top_images.tables import images_of_mode, mode_table
from qkjax.interaction.mode_name import ModeName
from qkjax.report.job import _earlier_scan
from qkjax.report.subject import subjects_of
from qkjax.results.store import digest
from qkjax.weights.load import origin

from . import arrays, files, json_values
from .files import INDEX
from .kind import Kind, change, pick
from .progress import OPTIONS, TEXTS, TOP, apply_to_bytes, home, images, model, whole


@cache
def result_folder() -> Path:
    """A folder with the result of a scan."""
    write(home() / "results")
    return home() / "results"


SCAN = ScanOptions(TOP, options=OPTIONS)


def write(folder: Path, scan: ScanOptions = SCAN) -> xr.Dataset:
    """Writes the result of a scan, or reads it."""
    return write_top_images(model(), images(), scan, folder, origin(home() / "m.npz", {})).dataset


NETCDF = st.one_of(
    change("attribute", INDEX, st.sampled_from(["removed", "empty", "number", "numbers"])),
    change("attribute json", INDEX, INDEX, st.sampled_from(json_values.HOW), TEXTS),
    change("dimension", INDEX, st.sampled_from(["shorter", "renamed", "none"])),
    change("digest", st.sampled_from(["removed", "right"])),
    *[change("digest", st.sampled_from(["removed", "right"]))] * 2,
)


def make_results(root: Path, changes: list) -> Path:
    """A folder with a result, whose checksum may be absent, as in version 0.1, or forged."""
    folder = shutil.copytree(result_folder(), root / "m")
    with xr.open_dataset(folder / "top_images.nc", engine="h5netcdf") as opened:
        data = opened.load()
    variables = {name: np.asarray(data[name].values) for name in data.variables}
    altered = arrays.changed({n: x for n, x in variables.items() if x.dtype.kind in "iuf"}, changes)
    for name, values in altered.items():
        dims = data[name].dims if name in data and values.shape == data[name].shape else None
        dims = dims or tuple(f"{name}_{axis}" for axis in range(values.ndim))
        same = name in data and values.dtype == data[name].dtype
        if not (same and np.array_equal(values, variables[name], equal_nan=True)):
            data = data.drop_vars(name, errors="ignore").assign({name: (dims, values)})
    data = data.drop_vars([n for n, x in variables.items() if x.dtype.kind in "iuf" and n not in altered])
    for what, *arguments in changes:
        data = _with_change(data, what, *arguments)
    if changes:
        data.to_netcdf(folder / "top_images.nc", engine="h5netcdf")
    apply_to_bytes(root, changes)
    return folder


def _with_change(data: xr.Dataset, what: str, *arguments) -> xr.Dataset:
    if what == "attribute":
        name = pick(arguments[0], sorted(data.attrs))
        rest = {key: value for key, value in data.attrs.items() if key != name}
        values = {"removed": rest, "empty": rest | {name: ""}, "number": rest | {name: 3.5}}
        return data.drop_attrs(deep=False).assign_attrs(values.get(arguments[1], rest | {name: np.arange(3)}))
    if what == "attribute json":
        name = pick(arguments[0], ["settings", "loaded_with", "settings"])
        text = json_values.changed(data.attrs[name], *arguments[1:])
        return data.assign_attrs({name: text.encode(errors="replace").decode()})
    if what == "dimension":
        name = pick(arguments[0], sorted(map(str, data.sizes)))
        slices = {"shorter": slice(-1), "none": slice(0)}
        return data.rename({name: "x"}) if arguments[1] == "renamed" else data.isel({name: slices[arguments[1]]})
    if what == "digest":
        rest = {key: value for key, value in data.attrs.items() if key != "digest"}
        data = data.drop_attrs(deep=False).assign_attrs(rest)
        return data if arguments[0] == "removed" else data.assign_attrs(digest=digest(data))
    return data


def use_results(folder: Path, scratch: Path) -> tuple:
    """What `qkjax top-images` and `qkjax report` do with an earlier result."""
    scan = _earlier_scan(folder / "top_images.nc", images())
    dataset = write(folder, scan or SCAN)
    names = [ModeName(0, 0, 0, 1), ModeName(1, 1, 2, -1)]
    pages = pages_of(SheetOptions(select=tuple(map(str, names))), (2, 2, 8))
    draw_pages(model(), images(), dataset, pages, folder)
    tables = mode_table(dataset, names), [images_of_mode(dataset, name) for name in names]
    return dataset, tables, subjects_of((str(folder),), {})


def check_results(folder: Path, changes: list, result: tuple) -> None:
    """The result is the same, unless it has no checksum, or a forged one, as only its own writer could make."""
    dataset, (rows, _), subjects = result
    assert len(rows) <= 2 * TOP
    assert subjects[0].checkpoint.config.depth == 2
    if not any(what == "digest" for what, *_ in changes):
        whole().value.load()
        np.testing.assert_array_equal(dataset.value, whole().value)
        np.testing.assert_array_equal(dataset.image_index, whole().image_index)


KINDS = {
    "results": Kind(
        make_results, st.one_of(arrays.CHANGES, files.CHANGES, NETCDF, NETCDF), use_results, check_results, writes=True
    ),
}
