"""Converts the results of `same_object` to a labelled dataset and to a table."""

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
    "score": Label("score", "1", "Product of the maxima of query map and key map; -inf if there are too few images."),
    "image_index": Label("image", "1", "Index of the image in the set; -1 if there are too few images."),
    "same": Label("same object", "1", "1 if the query object and the key object are the same."),
    "objects": Label("objects", "1", "Number of objects in the image; 0 if the image could not be used."),
    "singular_value": Label("singular value", "1", "Strength s of the mode."),
    "cosine": Label("cosine", "1", "Cosine between the query direction and the key direction of the mode."),
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
    """Collects, in a dataset, each mode's top images, and whether query object and key object are the same in each.

    Args:
      score: scores of the images, best first; -inf in empty places if there are too few images.
      stored: twice the index of the image, plus one if the query object and the key object are the same; -1 in empty
        places.
      objects: number of objects in each image; 0 if the image could not be used.
      names: names of all images.
      left_out: name and reason for each image that was left out.
      metrics: measures of the modes.
      attrs: attributes of the dataset.

    Returns:
      A dataset with dimensions layer, head, mode, sign (1 as in `Modes`, or -1), place (0 is the best image) and image.
      `score`, `image_index` and `same` describe the images of each mode, and `objects` is the number of objects in each
      image. `singular_value` and `cosine` describe the modes. `unreadable` contains the names of images that were left
      out, and `reason` the reasons.
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
    """Summarises the result in words: the layers in which query and key are on the same object most and least often."""
    most, least = (choose(rows, key=_above_chance) for choose in (max, min))

    def of(row: Row) -> str:
        return f"{row['same']:.2f} [{row['same_low']:.2f}, {row['same_high']:.2f}], chance {row['chance']:.2f}"

    return (
        f"Query and key are on the same object most often in layer {most['layer']}: {of(most)} (probability weighted "
        "by singular values, 95% interval over modes). They are on the same object least often in layer "
        f"{least['layer']}: {of(least)}."
    )


def _above_chance(row: Row) -> float:
    return row["same"] - row["chance"]


def objects_table(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per layer (the paper, figure 6).

    Each mode is used with only one sign: the sign whose best image has the larger score. `same` is the probability that
    the query object and the key object of a mode are the same, as a mean over heads. Within a head, modes are weighted
    by their share of the sum of singular values. `same_low` and `same_high` are the ends of the 95% bootstrap interval
    of `same`, which resamples modes. `chance` is the probability that two objects drawn at random from an image are the
    same, which is 1 / number of objects. `by_strength` and `plain` are computed like `same`, but weight all modes of a
    layer by their singular values, or equally. The paper weights "by singular values", which may mean `by_strength`; in
    `same`, a head with large singular values has no more weight than another head, as in the weighted cosine.
    """
    sign = dataset.score.isel(place=0, drop=True).argmax("sign")
    index, same = (dataset[name].isel(sign=sign).values for name in ("image_index", "same"))
    present = index >= 0
    objects = np.maximum(dataset.objects.values[index], 1)
    count = present.sum(-1)
    with np.errstate(invalid="ignore"):
        rates = [np.where(present, x, 0).sum(-1) / count for x in (same, 1 / objects)]
    s = dataset.singular_value.values.astype(np.float64)
    total = s.sum(-1, keepdims=True)
    weights = np.where(count > 0, s / np.where(total > 0, total, 1), 0)
    rates = [np.nan_to_num(rate) for rate in rates]
    strengths = np.where(count > 0, s, 0).reshape(len(s), -1)
    rows = []
    for layer, weight in enumerate(weights.reshape(len(weights), -1)):
        probability, chance = (rate[layer].ravel() for rate in rates)
        row: Row = {"layer": layer, "relative_depth": layer / max(len(weights) - 1, 1)}
        same_interval = ratio_interval((weight * probability)[None], weight[None])
        row |= dict(zip(("same", "same_low", "same_high"), same_interval, strict=True))
        row |= {"chance": float((weight * chance).sum() / weight.sum())}
        row |= {"by_strength": float(probability @ strengths[layer] / strengths[layer].sum())}
        row |= {"plain": float(probability.mean())}
        rows.append(row)
    return rows
