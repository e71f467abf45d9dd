"""Query and key maps of every mode on the images that excite it most."""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from qkjax.activations.project import Stream, project
from qkjax.analyses.top_images.scan import ScanOptions, check
from qkjax.errors import QkjaxError
from qkjax.images.prefetch import Batch, batches
from qkjax.images.sources import ImageSet
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import resolution_of, scaled_pixels, scaling
from qkjax.passes.partial import Unreadable, go_through, read_unfinished, write_unfinished
from qkjax.passes.settings import batch_groups, batch_size, over_devices
from qkjax.report.pack import COARSE, quantised
from qkjax.results.store import HOW, texts, versions, write_dataset
from qkjax.runtime.files import remove
from qkjax.vit.model import ViT
from qkjax.weights.load import Checkpoint

DIMS = ("layer", "head", "mode", "sign", "place")


class Tiles(NamedTuple):
    """Maps of the first modes of each head on each one's best images, both signs, in whole numbers.

    Attributes:
      query_map, key_map: the maps of sign +1 (those of -1 are their negatives, and not negated here), int8.
      query_step, key_step: what they are multiplied by.
    """

    query_map: Int[np.ndarray, "layers heads modes 2 places rows columns"]
    key_map: Int[np.ndarray, "layers heads modes 2 places rows columns"]
    query_step: Float[np.ndarray, "layers heads modes 2 places"]
    key_step: Float[np.ndarray, "layers heads modes 2 places"]


def map_tiles(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    top: xr.Dataset,
    shown: tuple[int, int],
    folder: Path,
) -> xr.Dataset:
    """The maps, read from maps.nc in the folder, or made and written there, in one pass, which can be interrupted.

    What lies there is made anew where it is of another scan, has too little, or lacks an image that can be read now.

    Args:
      modes, images, options: those of the scan.
      top: what the scan found, as `top_images_dataset` has it; its first score counts.
      shown: modes of each head, and images of each mode.

    Returns:
      A dataset with `Tiles` as variables, and `left_out`, the images that can no longer be read, with a `reason`.

    Raises:
      QkjaxError: an unfinished pass is of other settings, or a file cannot be written; what was done is kept.
    """
    settings = {**json.loads(top.attrs["settings"]), "shown": json.dumps(shown)}
    path, so_far = folder / "maps.nc", folder / "maps.partial.npz"
    data = _earlier(path, settings, shown, images)
    if data is None:
        index = top.image_index.values[0, :, :, : shown[0], :, : shown[1]]
        tiles, left_out = _make(checkpoint, modes, images, options, index, so_far, settings)
        data = _dataset(tiles, left_out, images, {"model": checkpoint.name, "settings": json.dumps(settings)})
        write_dataset(data, path)
        print(f"wrote {path}", file=sys.stderr)
    remove(so_far)
    return data


def _earlier(path: Path, settings: Mapping[str, str], shown: tuple[int, int], images: ImageSet) -> xr.Dataset | None:
    """Of maps that were made before the first modes and places; None where they are not these, or too few."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            was = json.loads(opened.attrs["settings"])
            enough = opened.sizes["mode"] >= shown[0] and opened.sizes["place"] >= shown[1]
            same = all(was.get(name) == settings[name] for name in settings if name not in (*HOW, "shown"))
            if not (enough and same) or any(_readable(images, str(name)) for name in opened.left_out.values):
                return None
            return opened.isel(mode=slice(shown[0]), place=slice(shown[1])).load()
    except Exception:  # not there, or h5netcdf stumbles over it: unlike a scan it is soon made again
        return None


def _readable(images: ImageSet, name: str) -> bool:
    try:
        images.read(images.names.index(name))
    except QkjaxError:
        return False
    return True


def _dataset(tiles: Tiles, left_out: Unreadable, images: ImageSet, attrs: Mapping[str, str]) -> xr.Dataset:
    variables = {
        name: ((*DIMS, "row", "column") if values.ndim == 7 else DIMS, values)
        for name, values in tiles._asdict().items()
    }
    variables["left_out"] = ("missing", texts([images.names[index] for index, _ in left_out]))
    variables["reason"] = ("missing", texts([reason for _, reason in left_out]))
    data = xr.Dataset(variables, {"sign": [1, -1]}, {**attrs, **versions()})
    for name in ("query_map", "key_map"):
        data[name].encoding = {"zlib": True, "complevel": 4}
    return data


@partial(jax.jit, static_argnames=("model", "stream"))
def _maps(model: ViT, params, modes: Modes, scaling, pixels, stream: Stream):
    """Of each layer the numbers (2, heads, modes, batch, patches) and steps of query (0) and key maps (1).

    They are made whole numbers on the device: all maps of a batch are more than one wants to bring over.
    """
    _, out = model.apply({"params": params}, scaled_pixels(pixels, scaling), capture=(stream,))
    found = []
    for layer in range(model.config.depth):
        tokens = out["encoder"][f"block{layer:02d}"][stream][:, model.config.prefix_tokens :]
        maps = project(tokens, modes.u[layer], modes.v[layer])
        found.append(quantised(maps.transpose(2, 3, 4, 0, 1), (4,), COARSE))
    return found


def _make(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    options: ScanOptions,
    index: Int[np.ndarray, "layers heads modes 2 places"],
    path: Path,
    settings: Mapping[str, str],
) -> tuple[Tiles, Unreadable]:
    grid, size = check(checkpoint, options), batch_size(options.batch)
    wanted = np.unique(index[index >= 0])
    groups = [wanted[list(group)].tolist() for group in batch_groups(len(wanted), size)]
    found = read_unfinished(path, settings)
    arrays, unreadable = found or (_nothing_yet(index.shape, grid), ())
    done = int(arrays.pop("done", 0))
    tiles = Tiles(**arrays)
    model = ViT(checkpoint.config, options.dtype)
    first = Modes(*(x[..., : index.shape[2]] for x in modes))
    held = jax.device_put((checkpoint.params, first, scaling(checkpoint)), over_devices(None))

    def step(state: tuple[int, Unreadable], batch: Batch) -> tuple[int, Unreadable]:
        """Fills in the maps of a batch. Done once more after a stop, it writes the same."""
        pixels = jax.device_put(batch.pixels, over_devices(0))
        for layer, found in enumerate(_maps(model, *held, pixels, stream=options.stream)):
            numbers, steps = map(np.asarray, found)
            for place, image in enumerate(batch.index):
                at = np.nonzero(index[layer] == image) if image >= 0 else ((),)
                for kind in (0, 1) if len(at[0]) else ():
                    tiles[kind][layer][at] = numbers[kind, at[0], at[1], place].reshape(-1, *grid)
                    tiles[2 + kind][layer][at] = steps[kind, at[0], at[1], place]
        return state[0] + 1, (*state[1], *batch.unreadable)

    def save(state: tuple[int, Unreadable]) -> None:
        write_unfinished(path, settings, {"done": np.array(state[0]), **tiles._asdict()}, state[1])

    made = batches(images, groups[done:], size, checkpoint.preprocess, resolution_of(checkpoint, options.resolution))
    work = ((len(group), batch) for group, batch in zip(groups[done:], made, strict=True))
    print(f"{checkpoint.name}: maps of {len(wanted)} images", file=sys.stderr)
    _, unreadable = go_through((done, unreadable), work, step, save, len(wanted), sum(map(len, groups[:done])))
    return tiles, unreadable


def _nothing_yet(shape: tuple[int, ...], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    numbers = {name: np.zeros((*shape, *grid), np.int8) for name in ("query_map", "key_map")}
    return numbers | {name: np.zeros(shape, np.float32) for name in ("query_step", "key_step")}
