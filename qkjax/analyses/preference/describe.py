"""Makes tables and figures of attention preference."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax import figures
from qkjax.analyses.outcome import Description
from qkjax.analyses.preference.tables import by_head, links, preference_by_head, preference_table
from qkjax.images.preprocess import normalise
from qkjax.images.scenes import Scene, crop_to_model
from qkjax.images.sets import ImageSet
from qkjax.passes.inputs import crop_to_patches, for_photographs, resolution_of
from qkjax.passes.options import PassOptions
from qkjax.results.rows import Row, format_rows
from qkjax.vit.model import ViT, forward
from qkjax.weights.checkpoint import Checkpoint

HEADINGS = {
    "layer": "layer", "same": "same", "different": "other", "background": "backgr",
    "same_times_uniform": "same x", "different_times_uniform": "other x", "background_times_uniform": "backgr x",
    "similarity": "similar", "weighted_cosine": "cosine", "special": "special",
}  # fmt: skip


def describe(
    dataset: xr.Dataset,
    checkpoint: Checkpoint | None = None,
    scenes: ImageSet[Scene] | None = None,
    options: PassOptions | None = None,
) -> Description:
    """Makes figures, a table by layer, a table by head, and a table of rank correlations with the weighted cosine.

    Args:
      dataset: the result of `attention_preference`.
      checkpoint, scenes, options: the arguments of `attention_preference`; they are needed for a figure of attention in
        the first scene.
    """
    name, frame = dataset.attrs["model"], dataset.attrs.get("frame", "plain frame")
    rows, linked = preference_table(dataset), links(dataset)
    short = [{title: row[column] for column, title in HEADINGS.items()} for row in rows]
    correlations = [{key: row[key] for key in ("preference", "heads", "all_heads", "within_layers")} for row in linked]
    text = f"{format_rows(short)}\nrank correlation, over heads, between the weighted cosine and each preference:\n"
    drawn = {
        "preference_by_layer": lambda: figures.preference_by_layer({name: rows}, frame),
        "anisotropy": lambda: figures.anisotropy_by_layer(name, rows, frame),
        "links": lambda: figures.preference_links(
            name, dataset.weighted_cosine.values, by_head(dataset), linked, frame
        ),
    }
    if checkpoint is not None and scenes is not None:
        arguments = checkpoint, scenes, dataset, options or PassOptions()
        drawn["example"] = lambda: figures.attended_example(*example(*arguments))
    tables = {"preference": rows, "heads": preference_by_head(dataset), "links": linked}
    return Description(text + format_rows(correlations, {"preference": ""}), rows, tables, drawn)


def overlay(tables: Mapping[str, list[Row]]):
    """Plots the attention preference of several models against relative depth."""
    return figures.preference_by_layer(tables)


def example(checkpoint: Checkpoint, scenes: ImageSet[Scene], dataset: xr.Dataset, options: PassOptions):
    """The arguments of `figures.attended_example` for the first scene.

    Returns:
      A tuple of the model's name, the picture, the attention maps, the layers of the maps, and the query patches. The
      attention maps (layers, queries, rows, columns) are means over heads, in at most four layers. The queries are a
      target token and a distractor token.
    """
    checkpoint = for_photographs(checkpoint)
    name = str(dataset.image.values[0])
    resolution = resolution_of(checkpoint, options.resolution)
    scene = scenes.read(scenes.names.index(name))
    pixels, regions = crop_to_model(scene, name, checkpoint.preprocess, resolution, checkpoint.config.patch_size)
    images = normalise(pixels, checkpoint.preprocess)[None]
    _, out = forward(ViT(checkpoint.config, options.dtype), checkpoint.params, images, capture=("attention",))
    place = dataset.place.values[0]
    special, depth = checkpoint.config.prefix_tokens, checkpoint.config.depth
    layers = sorted({round(i * (depth - 1) / 3) for i in range(4)})
    maps = np.asarray(out["attention"])[np.array(layers), 0].mean(1)[:, special + place, special:]
    maps = (maps / maps.sum(-1, keepdims=True)).reshape(len(layers), len(place), *regions.shape[1:])
    return checkpoint.name, crop_to_patches(checkpoint, pixels), maps, layers, place
