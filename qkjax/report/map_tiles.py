"""Computes query and key maps of every mode on the images that excite the mode most."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from qkjax.activations.project import Stream, project
from qkjax.analyses.top_images.sheets import options_of
from qkjax.analyses.top_images.tables import MAP_NAMES, has_maps
from qkjax.analyses.usable import require_finite
from qkjax.errors import QkjaxError
from qkjax.images.prefetch import ahead, or_reason
from qkjax.images.sets import Batch, ImageSet, Unreadable
from qkjax.interaction.mode_name import ModeName
from qkjax.interaction.modes import Modes
from qkjax.passes.engine import batch_groups, run_pass
from qkjax.passes.inputs import batches_of_photographs, normalised_pixels, photograph_grid, scaling
from qkjax.passes.options import PassOptions, batch_size
from qkjax.report.pack import COARSE, quantised
from qkjax.results.store import HOW, read_result, texts, versions, write_dataset
from qkjax.runtime import hosts
from qkjax.runtime.devices import over_devices
from qkjax.runtime.files import discard, remove, temporaries
from qkjax.runtime.lock import exclusive
from qkjax.vit.model import ViT
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint, origin_of

DIMS = ("layer", "head", "mode", "sign", "place")
READ = 32  # number of images that are read together to find out which can still be read


class Tiles(NamedTuple):
    """Quantised maps of the strongest modes of each head, for the images that excite each sign of a mode most.

    Attributes:
      query_map, key_map: int8 maps of the mode with sign +1, for the top images of both signs. Maps for sign -1 are the
        negatives, and are not stored.
      query_step, key_step: factors by which the integers in `query_map` and `key_map` are multiplied.
    """

    query_map: Int[np.ndarray, "layers heads modes 2 places rows columns"]
    key_map: Int[np.ndarray, "layers heads modes 2 places rows columns"]
    query_step: Float[np.ndarray, "layers heads modes 2 places"]
    key_step: Float[np.ndarray, "layers heads modes 2 places"]


def map_tiles(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    top: xr.Dataset,
    shown: tuple[int, int],
    folder: Path,
    *,
    fresh: bool = False,
) -> xr.Dataset:
    """Reads maps from maps.nc in a folder, or takes them from the scan or computes them, and writes maps.nc.

    If the scan has too few maps, the function computes all maps in one resumable pass.

    The function computes the maps again if maps.nc is from a different image scan, contains too few maps, or lacks an
    image that can now be read.

    Args:
      checkpoint: the model.
      modes: modes of the checkpoint, in the plain frame (see `Frame`).
      images: the image set of the scan.
      top: the result of the scan, as returned by `top_images`. The first score of the result determines the images.
      shown: number of modes per head, and number of images per mode and sign.
      folder: folder of maps.nc.
      fresh: discard maps.nc and the progress of an interrupted pass.

    Returns:
      A dataset whose variables are the fields of `Tiles`, and `left_out` and `reason`: the names of images that can no
      longer be read, and the reasons.

    Raises:
      QkjaxError: an interrupted pass has different settings, another process is using the folder, or a file cannot be
        written; progress stays on disk.
    """
    settings = {**json.loads(top.attrs["settings"]), "shown": json.dumps(shown)}
    path, partial = folder / "maps.nc", hosts.process_path(folder / "maps.partial.npz")
    with exclusive(folder):
        if fresh:
            remove(path), remove(partial)
        dataset = _earlier(path, settings, shown, images) if jax.process_index() == 0 else None
        ready = hosts.gather_json(dataset is not None)[0] if jax.process_count() > 1 else dataset is not None
        if not ready:
            index = top.image_index.values[0, :, :, : shown[0], :, : shown[1]]
            dataset = _stored(checkpoint, images, top, index, settings)
            dataset = dataset or _computed(checkpoint, modes, images, options_of(top), index, partial, settings)
            hosts.on_first_host(lambda: write_dataset(dataset, path))  # every host keeps its progress until then
        remove(partial)
        discard(temporaries([path]))  # left by processes that were killed
    return dataset


def _earlier(path: Path, settings: Mapping[str, str], shown: tuple[int, int], images: ImageSet) -> xr.Dataset | None:
    """Reads earlier maps from disk, reduced to the requested numbers of modes and images.

    The result is None if the file cannot be read, has different settings, contains too few maps, or lacks an image that
    can now be read.
    """
    try:
        earlier = read_result(path)
        was = json.loads(earlier.attrs["settings"])
        enough = earlier.sizes["mode"] >= shown[0] and earlier.sizes["place"] >= shown[1]
        same = all(was.get(name) == settings[name] for name in settings if name not in (*HOW, "shown"))
        if not (enough and same) or any(_readable(images, str(name)) for name in earlier.left_out.values):
            return None
        return earlier.isel(mode=slice(shown[0]), place=slice(shown[1]))
    except Exception:  # the file is missing or unreadable; computing maps again is fast, unlike a scan
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


def _stored(
    checkpoint: Checkpoint,
    images: ImageSet,
    top: xr.Dataset,
    index: Int[np.ndarray, "layers heads modes 2 places"],
    settings: Mapping[str, str],
) -> xr.Dataset | None:
    """The maps of the scan itself, quantised; None if the scan has maps of too few modes.

    Maps of images that can no longer be read are left out, as in a pass over the images.
    """
    modes, places = index.shape[2], index.shape[4]
    if not has_maps(top, ModeName(0, 0, modes - 1, 1)):
        return None
    tiles = _blank(index.shape, (top.sizes["row"], top.sizes["column"]))
    left_out = _unreadable(images, [int(image) for image in np.unique(index[index >= 0])])
    shown = (index >= 0) & ~np.isin(index, [image for image, _ in left_out])
    for kind, name in enumerate(MAP_NAMES):
        for layer, of_layer in enumerate(shown):
            values = top[name].values[layer, :, :modes, :, :places]
            values = np.where(of_layer[..., None, None], values, 0)
            tiles[kind][layer], tiles[2 + kind][layer] = map(np.asarray, quantised(values, (4, 5), COARSE))
    require_finite({"query maps": tiles.query_step, "key maps": tiles.key_step}, images.name)
    attrs = {**origin_of(checkpoint), "settings": json.dumps(settings)}
    return _dataset(tiles, left_out, images, attrs)


def _unreadable(images: ImageSet, indices: Sequence[int]) -> Unreadable:
    """Index and reason for each of the images that cannot be read; threads read the images."""

    def read(index: int) -> bool | str:
        return or_reason(lambda: images.read(index) is not None, images.names[index])

    groups = [indices[i : i + READ] for i in range(0, len(indices), READ)]
    results = ((i, x) for group, found in ahead(read, groups) for i, x in zip(group, found, strict=True))
    return tuple((index, reason) for index, reason in results if isinstance(reason, str))


@partial(jax.jit, static_argnames=("model", "stream"))
def _maps(model: ViT, params, modes: Modes, scaling, pixels, stream: Stream):
    """Computes, for each layer, the quantised query maps (index 0) and key maps (index 1), and their steps.

    The maps of a layer have shape (2, heads, modes, batch, patches). Maps are quantised on the device, because
    transferring all maps of a batch as floats would take too long.
    """
    _, out = model.apply({"params": params}, normalised_pixels(pixels, scaling), capture=(stream,))
    found = []
    for layer, tokens in enumerate(layer_outputs(out, stream)):
        maps = project(tokens[:, model.config.prefix_tokens :], modes.u[layer], modes.v[layer])
        found.append(quantised(maps.transpose(2, 3, 4, 0, 1), (4,), COARSE))
    return found


def _computed(
    checkpoint: Checkpoint,
    modes: Modes,
    images: ImageSet,
    how: tuple[Stream, PassOptions],
    index: Int[np.ndarray, "layers heads modes 2 places"],
    partial: Path,
    settings: Mapping[str, str],
) -> xr.Dataset:
    """Computes the query and key maps of all tiles, in one pass over the images on the page."""
    stream, options = how
    grid = photograph_grid(checkpoint, options.resolution)
    shown = np.unique(index[index >= 0])
    groups = [shown[list(group)].tolist() for group in batch_groups(len(shown), batch_size(options.batch))]
    model = ViT(checkpoint.config, options.dtype)
    first = jax.tree.map(lambda x: x[..., : index.shape[2]], modes)
    on_device = jax.device_put((checkpoint.params, first, scaling(checkpoint.preprocess)), over_devices(None))

    def step(tiles: Tiles, batch: Batch) -> tuple[Tiles, dict]:
        """Adds the maps of a batch. If a step is repeated after an interruption, it writes the same values."""
        pixels = jax.device_put(batch.pixels, over_devices(0))
        for layer, maps in enumerate(_maps(model, *on_device, pixels, stream=stream)):
            numbers, steps = map(np.asarray, maps)
            for place, image in enumerate(batch.index):
                at = np.nonzero(index[layer] == image) if image >= 0 else ((),)
                for kind in (0, 1) if len(at[0]) else ():
                    tiles[kind][layer][at] = numbers[kind, at[0], at[1], place].reshape(-1, *grid)
                    tiles[2 + kind][layer][at] = steps[kind, at[0], at[1], place]
        return tiles, {}

    batches = batches_of_photographs(checkpoint, images, options)
    tiles = _blank(index.shape, grid)
    result = run_pass(step, tiles, groups, batches, partial, settings, merge=_merged)
    values = {"query maps": result.state.query_step, "key maps": result.state.key_step}
    require_finite(values, images.name, partial)
    attrs = {**origin_of(checkpoint), "settings": json.dumps(settings)}
    return _dataset(result.state, result.unreadable, images, attrs)


def _merged(shares: list[Tiles]) -> Tiles:
    """Sums the maps of several hosts, which is correct because each map is nonzero on a single host."""
    return Tiles(*(np.sum(parts, axis=0, dtype=parts[0].dtype) for parts in zip(*shares, strict=True)))


def _blank(shape: tuple[int, ...], grid: tuple[int, int]) -> Tiles:
    numbers = [np.zeros((*shape, *grid), np.int8) for _ in range(2)]
    return Tiles(*numbers, *(np.zeros(shape, np.float32) for _ in range(2)))
