"""Same object or another, mode by mode: a labelled dataset and a table."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from qkjax.analyses.objects.objects_pass import ObjectsFound
from qkjax.images.segmented import ObjectSet
from qkjax.interaction.metrics import Metrics
from qkjax.results.intervals import ratio_interval
from qkjax.results.modes import PER_MODE
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions


def objects_dataset(found: ObjectsFound, images: ObjectSet, metrics: Metrics, attrs: Mapping[str, str]) -> xr.Dataset:
    """What a pass found.

    Returns:
      A dataset with dims layer, head, mode, sign (1 as in `Modes`, -1 the other), place (0 best) and image: `score`,
      `image_index` (-1 where there were too few images) and `same` of each mode; `objects` of each image;
      `singular_value` and `cosine` of the modes; `unreadable` names of images, and each one's `reason`.
    """
    dims = (*PER_MODE, "sign", "place")
    left_out = [*images.left_out, *((images.names[index], reason) for index, reason in found.unreadable)]
    variables = {
        "score": (dims, found.score),
        "image_index": (dims, found.image),
        "same": (dims, found.same.astype(np.int8)),
        "objects": ("image", found.objects),
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
        "unreadable": ("broken", texts([name for name, _ in left_out])),
        "reason": ("broken", texts([reason for _, reason in left_out])),
    }
    coords = {"sign": ("sign", [1, -1]), "image": ("image", texts(images.names))}
    return xr.Dataset(variables, coords, {**attrs, **versions()})


def objects_table(dataset: xr.Dataset) -> list[Row]:
    """A row for each layer (the paper, figure 6), of each mode's sign whose best image has the larger score.

    `same`: the probability that a mode's query and key object are one, weighted by its singular value's share of its
    head's sum, mean over heads; `_low`, `_high` the ends of its 95% interval, modes resampled. `chance`: the same for
    two objects drawn at random out of those of the same images, 1 / objects. `plain`: without weights.
    """
    sign = dataset.score.isel(place=0).argmax("sign")
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
