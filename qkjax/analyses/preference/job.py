"""The job of `qkjax preference`: do tokens attend to their own object, to other objects, or to the background?"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.preference.scenes_pass import PreferenceOptions, measure_scenes
from qkjax.analyses.preference.tables import by_head, links, preference_by_head, preference_dataset, preference_table
from qkjax.analyses.targets import by_name, folders
from qkjax.errors import QkjaxError
from qkjax.images.generated import patterns
from qkjax.images.o3 import open_o3
from qkjax.images.preprocess import normalise
from qkjax.images.scenes import Scenes, seen
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import decompose
from qkjax.passes.inputs import for_photographs, photograph_grid, resolution_of, seen_picture
from qkjax.passes.settings import settings_of
from qkjax.results.rows import format_rows, list_unreadable, write_csv
from qkjax.results.store import read_earlier, write_dataset
from qkjax.runtime.files import make_folder, remove
from qkjax.vit.model import ViT, forward
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.load import Checkpoint, load

SHOWN = ("layer", "same", "different", "background", "same_times_uniform", "different_times_uniform",
         "background_times_uniform", "similarity", "weighted_cosine", "special")  # fmt: skip
HEADINGS = ("layer", "same", "different", "backgr.", "same x", "different x", "backgr. x", "similarity",
            "weighted cos", "special")  # fmt: skip


class ScenesWanted(NamedTuple):
    """Which scenes.

    Attributes:
      o3: folder of the O3 or P3 data set; None for generated ones.
      kind, count, seed: of generated ones, see `images.patterns`.
    """

    o3: Path | None = None
    kind: Literal["patterns", "pasted"] = "patterns"
    count: int = 200
    seed: int = 0


def preference_of_models(
    models: tuple[str, ...], wanted: ScenesWanted, out: Path | None, options: PreferenceOptions, settings: Mapping
) -> dict[str, xr.Dataset]:
    """Measures each model in turn into a folder of its own; several are overlaid.

    Returns:
      What is in the files preference.nc, by the models' names; see `preference_dataset`.

    Raises:
      QkjaxError: bad input, or a result cannot be written; what was done is kept.
    """
    checkpoints = by_name([for_photographs(load(name, **settings)) for name in models])
    for checkpoint in checkpoints.values():  # or say at once why not
        photograph_grid(checkpoint, options.resolution)
    scenes = open_o3(wanted.o3) if wanted.o3 else _generated(wanted)
    homes = folders(checkpoints, out, "preference")
    found = {name: _one(checkpoint, scenes, homes[name], options) for name, checkpoint in checkpoints.items()}
    if len(found) > 1:
        tables = {name: preference_table(dataset) for name, dataset in found.items()}
        for path in figures.save(figures.preference_by_layer(tables), (out or Path("results")) / "preference_by_layer"):
            print(f"wrote {path}", file=sys.stderr)
    return found


def _generated(wanted: ScenesWanted) -> Scenes:
    if wanted.count < 1 or wanted.seed < 0:
        raise QkjaxError("--count is a whole number from 1 up, and --seed from 0 up")
    return patterns(wanted.count, wanted.seed, wanted.kind)


def _one(checkpoint: Checkpoint, scenes: Scenes, folder: Path, options: PreferenceOptions) -> xr.Dataset:
    make_folder(folder)
    how = settings_of(checkpoint, scenes, options)
    path, so_far = folder / "preference.nc", folder / "preference.partial.npz"
    dataset = read_earlier(path, how)
    if dataset is None:
        print(f"{checkpoint.name}: measuring {len(scenes)} scenes of {scenes.name}", file=sys.stderr)
        found = measure_scenes(checkpoint, scenes, options, so_far, how)
        if not len(found.index):
            remove(so_far)
            raise QkjaxError(f"none of the {len(scenes)} scenes could be read: {found.unreadable[0][1]}")
        metrics = measure(decompose(*query_key_kernels(checkpoint.params)))
        attrs = {"model": checkpoint.name, "scenes": scenes.name, "settings": json.dumps(how)}
        dataset = preference_dataset(found, scenes, metrics, attrs)
        write_dataset(dataset, path)
    remove(so_far)
    _say_what_is_missing(dataset, folder)
    rows = preference_table(dataset)
    write_csv(rows, folder / "preference.csv")
    write_csv(preference_by_head(dataset), folder / "heads.csv")
    linked = links(dataset)
    write_csv(linked, folder / "links.csv")
    shown = [{title: row[name] for name, title in zip(SHOWN, HEADINGS, strict=True)} for row in rows]
    print(f"{checkpoint.name}, {dataset.sizes['image']} scenes of {scenes.name}\n{format_rows(shown)}")
    print(format_rows(linked, {"preference": ""}), flush=True)
    drawn = {
        "preference_by_layer": figures.preference_by_layer({checkpoint.name: rows}),
        "anisotropy": figures.anisotropy_by_layer(checkpoint.name, rows),
        "links": figures.preference_links(checkpoint.name, dataset.weighted_cosine.values, by_head(dataset), linked),
        "example": figures.attended_example(*example(checkpoint, scenes, dataset, options)),
    }
    for stem, figure in drawn.items():
        figures.save(figure, folder / stem)
    print(f"wrote preference.nc, three tables and {len(drawn)} figures (png, pdf) to {folder}", file=sys.stderr)
    return dataset


def _say_what_is_missing(dataset: xr.Dataset, folder: Path) -> None:
    """Counts what was left out, listed in a file, and targets too small for a patch, which are not."""
    list_unreadable(dataset, folder / "left_out.csv", "left_out", "are left out")
    if small := int((dataset.target_patches < 1).sum()):
        print(f"{small} of {dataset.sizes['image']} targets are smaller than a patch (and measured)", file=sys.stderr)


def example(checkpoint: Checkpoint, scenes: Scenes, dataset: xr.Dataset, options: PreferenceOptions):
    """Of the first scene: what `figures.attended_example` draws.

    Returns:
      The model's name; the picture; (layers, queries, rows, columns), the attention of the target's token and of a
      distractor's over the patches, mean over heads, at most four layers; these layers; the tokens' places.
    """
    name = str(dataset.image.values[0])
    resolution = resolution_of(checkpoint, options.resolution)
    scene = scenes.read(scenes.names.index(name))
    pixels, regions = seen(scene, name, checkpoint.preprocess, resolution, checkpoint.config.patch_size)
    images = normalise(pixels, checkpoint.preprocess)[None]
    _, out = forward(ViT(checkpoint.config, options.dtype), checkpoint.params, images, capture=("attention",))
    place = dataset.place.values[0]
    special, depth = checkpoint.config.prefix_tokens, checkpoint.config.depth
    layers = sorted({round(i * (depth - 1) / 3) for i in range(4)})
    maps = jnp.asarray(out["attention"])[np.array(layers), 0].mean(1)[:, special + place, special:]
    maps = np.asarray(maps / maps.sum(-1, keepdims=True)).reshape(len(layers), len(place), *regions.shape[1:])
    return checkpoint.name, seen_picture(checkpoint, pixels), maps, layers, place
