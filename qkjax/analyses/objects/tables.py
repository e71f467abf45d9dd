"""Same object or two objects, mode by mode: a labelled dataset and a table."""

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
      score: scores of the images, best first; -inf if there are fewer images than places.
      stored: twice the image's index, plus one if the objects are the same; -1 if there are fewer images than places.
      objects: number of objects of each image; 0 if it could not be used.
      names: names of all images.
      left_out: name of each image that was left out, and the reason.

    Returns:
      A dataset with dims layer, head, mode, sign (1 as in `Modes`, or -1), place (0 is the best) and image: `score`,
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
    """The result in words: in which layers query and key are on the same object most often and least often."""
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
    """One row per layer (the paper, figure 6). Each mode counts with the sign whose best image has the larger score.

    `same`: the probability that the query object of a mode is its key object. Modes are weighted by their share of the
    sum of their head's singular values; the mean is over heads. `same_low` and `same_high` are the ends of its 95%
    interval, with modes resampled. `chance`: the same for objects drawn at random from those of the image, 1 / objects.
    `plain`: the unweighted probability.
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
    rows = []
    for layer, weight in enumerate(weights.reshape(len(weights), -1)):
        probability, chance = (rate[layer].ravel() for rate in rates)
        row: Row = {"layer": layer, "relative_depth": layer / max(len(weights) - 1, 1)}
        same_interval = ratio_interval((weight * probability)[None], weight[None])
        row |= dict(zip(("same", "same_low", "same_high"), same_interval, strict=True))
        row |= {"chance": float((weight * chance).sum() / weight.sum()), "plain": float(probability.mean())}
        rows.append(row)
    return rows
