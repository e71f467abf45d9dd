"""Same object or another, mode by mode: a labelled dataset and a table."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from qkjax.interaction.metrics import Metrics
from qkjax.results.annotate import Label, annotated
from qkjax.results.intervals import ratio_interval
from qkjax.results.modes import PER_MODE
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions

LABELS = {
    "score": Label("score", "1", "Product of the maxima of query and key map; -inf if there are too few images."),
    "image_index": Label("image", "1", "Index of the image in the set; -1 if there are too few images."),
    "same": Label("same object", "1", "1 if the query object and the key object are the same."),
    "objects": Label("objects", "1", "Number of objects of the image; 0 if it could not be used."),
    "singular_value": Label("singular value", "1", "Strength s of the mode."),
    "cosine": Label("cosine", "1", "Cosine of query and key direction of the mode."),
    "unreadable": Label("image left out", "", "Name of an image that could not be used."),
    "reason": Label("reason", "", "Why the image could not be used."),
}


def objects_dataset(
    score: Float[np.ndarray, "layers heads modes signs top"],
    stored: Int[np.ndarray, "layers heads modes signs top"],
    objects: Int[np.ndarray, "images"],
    names: Sequence[str],
    left_out: Sequence[tuple[str, str]],
    metrics: Metrics,
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """The images that excite each mode most, and whether query and key object are the same.

    Args:
      score: of the images, best first; -inf if there are too few.
      stored: twice the image's index, plus one if the objects are the same; -1 if there are too few.
      objects: number of objects of each image; 0 if it could not be used.
      names: of all images.
      left_out: name and reason of the images that were left out.

    Returns:
      A dataset with dims layer, head, mode, sign (1 as in `Modes`, -1 the other), place (0 best) and image: `score`,
      `image_index` and `same` of each mode; `objects` of each image; `singular_value` and `cosine` of the modes;
      `unreadable`, the names of images left out, and the `reason` of each.
    """
    dims = (*PER_MODE, "sign", "place")
    variables = {
        "score": (dims, score),
        "image_index": (dims, np.where(stored < 0, -1, stored // 2)),
        "same": (dims, ((stored % 2 == 1) & (stored >= 0)).astype(np.int8)),
        "objects": ("image", objects),
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
        "unreadable": ("broken", texts([name for name, _ in left_out])),
        "reason": ("broken", texts([reason for _, reason in left_out])),
    }
    coords = {"sign": ("sign", [1, -1]), "image": ("image", texts(names))}
    dataset = annotated(xr.Dataset(variables, coords, {**attrs, **versions()}), LABELS)
    return dataset.assign_attrs(summary=summary(objects_table(dataset)))


def summary(rows: Sequence[Row]) -> str:
    """The result in words: in which layers modes join parts of one object, and in which parts of two."""
    most, least = (choose(rows, key=_above_chance) for choose in (max, min))

    def of(row: Row) -> str:
        return f"{row['same']:.2f} [{row['same_low']:.2f}, {row['same_high']:.2f}], chance {row['chance']:.2f}"

    return (
        f"Query and key object are the same most often in layer {most['layer']}: {of(most)} "
        f"(probability weighted by singular values, 95% interval over modes). "
        f"They are the same least often in layer {least['layer']}: {of(least)}."
    )


def _above_chance(row: Row) -> float:
    return row["same"] - row["chance"]


def objects_table(dataset: xr.Dataset) -> list[Row]:
    """A row for each layer (the paper, figure 6), of each mode's sign whose best image has the larger score.

    `same`: the probability that a mode's query and key object are one, weighted by its singular value's share of its
    head's sum, mean over heads; `_low`, `_high` the ends of its 95% interval, modes resampled. `chance`: the same for
    two objects drawn at random out of those of the same images, 1 / objects. `plain`: without weights.
    """
    sign = dataset.score.isel(place=0, drop=True).argmax("sign")
    index, same = (dataset[name].isel(sign=sign).values for name in ("image_index", "same"))
    there = index >= 0
    objects = np.maximum(dataset.objects.values[index], 1)
    held = there.sum(-1)
    with np.errstate(invalid="ignore"):
        rates = [np.where(there, x, 0).sum(-1) / held for x in (same, 1 / objects)]
    s = dataset.singular_value.values.astype(np.float64)
    total = s.sum(-1, keepdims=True)
    weights = np.where(held > 0, s / np.where(total > 0, total, 1), 0)
    rates = [np.nan_to_num(rate) for rate in rates]
    rows = []
    for layer, weight in enumerate(weights.reshape(len(weights), -1)):
        found, chance = (rate[layer].ravel() for rate in rates)
        below = weight[None]
        row: Row = {"layer": layer, "relative_depth": layer / max(len(weights) - 1, 1)}
        row |= dict(zip(("same", "same_low", "same_high"), ratio_interval((weight * found)[None], below), strict=True))
        row |= {"chance": float((weight * chance).sum() / weight.sum()), "plain": float(found.mean())}
        rows.append(row)
    return rows
