"""Converts the results of `top_images` to a labelled dataset, a table of selected modes, and a summary in words."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qkjax.activations.top_maps import TopMaps
from qkjax.figures.overlay import Map
from qkjax.interaction.metrics import Metrics
from qkjax.interaction.mode_name import ModeName
from qkjax.results.annotate import Label, annotated
from qkjax.results.modes import PER_MODE
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions

LABELS = {
    "value": Label("score", "1", "Score of the image for the mode; -inf if there are too few images."),
    "image_index": Label("image", "1", "Index of the image in the set; -1 if there are too few images."),
    "query_map": Label("query map", "1", "Projections of the image's patches onto u; NaN if there are too few images."),
    "key_map": Label("key map", "1", "Projections of the image's patches onto v; NaN if there are too few images."),
    "singular_value": Label("singular value", "1", "Strength s of the mode."),
    "cosine": Label("cosine", "1", "Cosine between the query direction and the key direction of the mode."),
    "unreadable": Label("unreadable image", "", "Name of an image that could not be read."),
    "reason": Label("reason", "", "Why the image could not be read."),
}
SCORED = ("score", *PER_MODE, "sign", "place")
MAPS = ("layer", "head", "mapped_mode", "sign", "place", "row", "column")
MAP_NAMES = "query_map", "key_map"


def top_images_dataset(
    best: TopMaps,
    grid: tuple[int, int],
    scores: Sequence[str],
    names: Sequence[str],
    unreadable: Sequence[tuple[str, str]],
    metrics: Metrics,
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """Collects in a dataset the images that excite each mode most.

    Args:
      best: scores and indices of the top images, of shape (scores, layers, heads, modes, 2, places), and their maps.
      grid: rows and columns of patches.
      scores: names of the scores.
      names: names of all images in the set.
      unreadable: name and reason for each image that could not be read.
      metrics: measures of the modes.
      attrs: attributes of the dataset.

    Returns:
      A dataset with dimensions score, layer, head, mode, sign (1 as in `Modes`, or -1), place (0 is the best image) and
      image. `value` is the score of an image, and `image_index` its index, or -1 if there are too few images. The
      coordinate `image` contains the names of the images. `singular_value` and `cosine` describe the modes. `query_map`
      and `key_map` are the maps of the first modes on these images. The maps also have dimensions mapped_mode, row and
      column, and are not negated for sign -1. `unreadable` contains the names of images that could not be read, and
      `reason` the reasons.
    """
    variables = {
        "value": (SCORED, np.asarray(best.top.score)),
        "image_index": (SCORED, np.asarray(best.top.image)),
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
        "unreadable": ("broken", texts([name for name, _ in unreadable])),
        "reason": ("broken", texts([reason for _, reason in unreadable])),
    }
    coords = {"score": ("score", texts(scores)), "sign": ("sign", [1, -1]), "image": ("image", texts(names))}
    if best.maps.shape[2]:
        maps = best.maps.reshape(*best.maps.shape[:-1], *grid)
        variables |= {name: (MAPS, maps[:, :, :, :, :, i], {"score": scores[0]}) for i, name in enumerate(MAP_NAMES)}
    dataset = annotated(xr.Dataset(variables, coords, {**attrs, **versions()}), LABELS)
    return dataset.assign_attrs(summary=summary(dataset))


def check_dataset(dataset: xr.Dataset, layers: int, heads: int, modes: int) -> None:
    """Checks a dataset that was read from a file; files of version 0.1 have no checksum.

    Args:
      dataset: the content of the file.
      layers, heads, modes: numbers of layers, of heads of a layer, and of modes of a head of the model.

    Raises:
      LookupError, ValueError, AttributeError: a variable is missing, or has other dimensions, another type, or
        impossible values.
    """
    sizes, index, maps = dataset.sizes, dataset["image_index"].values, [n for n in MAP_NAMES if n in dataset]
    expected = {"value": SCORED, "image_index": SCORED, "singular_value": PER_MODE, "cosine": PER_MODE}
    expected |= {"score": ("score",), "image": ("image",), "unreadable": ("broken",), "reason": ("broken",)}
    expected |= dict.fromkeys(maps, MAPS)
    for name, dims in expected.items():
        if dataset[name].dims != dims:
            raise ValueError(f"{name} has the dimensions {dataset[name].dims}, expected {dims}")
    shape = tuple(sizes[name] for name in ("layer", "head", "mode", "sign"))
    if shape != (layers, heads, modes, 2) or not dataset["value"].size:
        raise ValueError(f"its sizes are {dict(sizes)}, expected {layers} layers, {heads} heads and {modes} modes")
    if index.dtype.kind not in "iu" or not (index.min() >= -1 and index.max() < sizes["image"]):
        raise ValueError(f"image_index is not in the range from -1 to {sizes['image'] - 1}")
    numbers = {name: dataset[name].values for name in ("singular_value", "cosine", "value", *maps)}
    numbers["value"] = numbers["value"][index >= 0]
    for name, values in numbers.items():  # maps are NaN if there are too few images
        if values.dtype.kind != "f" or (name not in maps and not np.isfinite(values).all()):
            raise ValueError(f"{name} has values that are not finite numbers")
    for name in maps:
        str(dataset[name].score)


def summary(dataset: xr.Dataset) -> str:
    """Summarises the result in words: the number of images and modes, and the mode with the highest score."""
    best = dataset.value.isel(score=0, place=0)
    layer, head, mode, sign = np.unravel_index(int(best.values.argmax()), best.shape)
    image = str(dataset.image.values[int(dataset.image_index.isel(score=0, place=0).values[layer, head, mode, sign])])
    name = ModeName(int(layer), int(head), int(mode), 1 if sign == 0 else -1)
    modes = best.size // 2
    read = dataset.sizes["image"] - dataset.sizes["broken"]
    return (
        f"{read} images were scanned for {modes} modes, each with both signs. The highest score "
        f"({dataset.score.values[0]}) is {float(best.values.max()):.3g}, of mode {name} on {image}."
    )


def with_sign(dataset: xr.Dataset, name: ModeName) -> ModeName:
    """The name of a mode with its sign. If `name` has none, the sign whose best image scores higher is added."""
    best = dataset["value"].values[0][name[:3]][:, 0]
    return name if name.sign else name._replace(sign=1 if best[0] >= best[1] else -1)


def images_of_mode(dataset: xr.Dataset, name: ModeName) -> list[tuple[int, float]]:
    """Indices and scores of the top images of a signed mode, best first, according to the dataset's first score."""
    place = (0, *name[:3], 0 if name.sign > 0 else 1)
    pairs = zip(dataset["image_index"].values[place], dataset["value"].values[place], strict=True)
    return [(int(index), float(score)) for index, score in pairs if index >= 0]


def has_maps(dataset: xr.Dataset, name: ModeName) -> bool:
    """Whether a dataset, which may be of an early version, has maps of a mode on the top images of the first score."""
    stored = dataset.get("query_map")
    return stored is not None and name.mode < stored.sizes["mapped_mode"] and stored.score == dataset.score.values[0]


def maps_of_mode(dataset: xr.Dataset, name: ModeName) -> list[tuple[Map, Map]]:
    """Query map and key map of a signed mode on each image of `images_of_mode`. For sign -1, both maps are negated."""
    place, count = (*name[:3], 0 if name.sign > 0 else 1), len(images_of_mode(dataset, name))
    query, key = (name.sign * dataset[variable].values[place][:count] for variable in MAP_NAMES)
    return list(zip(query, key, strict=True))


def mode_table(dataset: xr.Dataset, names: Sequence[ModeName]) -> list[Row]:
    """A table with one row for each top image of each mode."""
    s, cosine = dataset["singular_value"].values, dataset["cosine"].values
    return [
        {**name._asdict(), "cosine": float(cosine[name[:3]]), "singular_value": float(s[name[:3]]), "place": place,
         "score": score, "image": str(dataset["image"].values[index])}
        for name in (with_sign(dataset, name) for name in names)
        for place, (index, score) in enumerate(images_of_mode(dataset, name))
    ]  # fmt: skip
