"""Attention preference as a labelled dataset and as a table."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.attending.preference_pass import QUERIES, STREAMS, Measured, anisotropy
from qkjax.bootstrap import Interval, interval, ratio_interval
from qkjax.images.scenes import REGIONS, Scenes
from qkjax.interaction.metrics import Metrics
from qkjax.results import Row, head_mean, texts, versions

PER_TOKEN = ("image", "layer", "head", "query")
DIMS = {
    "mass": (*PER_TOKEN, "region"), "own": PER_TOKEN, "special": PER_TOKEN, "similarity": PER_TOKEN[:3],
    "area": ("image", "region"), "place": ("image", "query"), "covered": ("image", "query"),
    "target_patches": ("image",),
}  # fmt: skip
KINDS = ("same", "different", "background")
PAIRS = {"same": ((0, 0), (1, 1)), "different": ((0, 1), (1, 0)), "background": ((0, 2), (1, 2))}
"""Query and region of the two terms of each kind: of the target's token and of the distractors'."""


def preference_dataset(found: Measured, scenes: Scenes, metrics: Metrics, attrs: Mapping[str, str]) -> xr.Dataset:
    """What a pass found, image by image and head by head.

    Returns:
      A dataset with dims image, layer, head, query (whose token asks: target, distractors) and region (target,
      distractors, background): the fields of `Measures`; `anisotropy` (stream, layer); `weighted_cosine` (layer, head)
      of the modes; `left_out` names of images that have no place in it, and each one's `reason`.
    """
    variables = {name: (DIMS[name], value) for name, value in found.measures._asdict().items()}
    left_out = [*scenes.left_out, *((scenes.names[index], reason) for index, reason in found.unreadable)]
    variables |= {
        "anisotropy": (("stream", "layer"), anisotropy(found.centre_sum, len(found.index))),
        "weighted_cosine": (("layer", "head"), np.asarray(metrics.weighted_cosine)),
        "left_out": ("missing", texts([name for name, _ in left_out])),
        "reason": ("missing", texts([reason for _, reason in left_out])),
    }
    coords = {
        "image": ("image", texts([scenes.names[i] for i in found.index])),
        "query": ("query", list(QUERIES)),
        "region": ("region", list(REGIONS)),
        "stream": ("stream", list(STREAMS)),
    }
    return xr.Dataset(variables, coords, {**attrs, **versions()})


def preference_table(dataset: xr.Dataset) -> list[Row]:
    """A row for each layer, with 95% intervals (`_low`, `_high`) over images of means over heads.

    `same`, `different`, `background`: attention mass on the token's own kind of object, on the other kind and on the
    background, mean of the target's token and the distractors' (the paper, figure 2; together 1). `_times_uniform`:
    the same over what uniform attention would give, the area; by the ratio of means over images. `same_without_own`:
    `same` when attention to the token itself is left out. `special`: share of all attention on class token and
    registers. `similarity`: preference for similar tokens. `weighted_cosine` of the modes; `anisotropy_` by stream, and
    `relative_cosine`, the weighted cosine less the residual stream's (the paper, figure S4).
    """
    mass, own, special = (dataset[name].mean("head").values.astype(np.float64) for name in ("mass", "own", "special"))
    area, covered = (dataset[name].values.astype(np.float64) for name in ("area", "covered"))
    similar = dataset.similarity.mean("head").values.astype(np.float64)
    cosine = head_mean(dataset.weighted_cosine.values)
    rows = []
    for layer in range(dataset.sizes["layer"]):
        row: Row = {"layer": layer, "relative_depth": layer / max(dataset.sizes["layer"] - 1, 1)}
        for kind in KINDS:
            terms = np.stack([mass[:, layer, query, region] for query, region in PAIRS[kind]])
            uniform = np.stack([area[:, region] for _, region in PAIRS[kind]])
            _put(row, kind, interval(terms.mean(0, keepdims=True)))
            _put(row, f"{kind}_times_uniform", ratio_interval(terms, uniform))
        itself = own[:, layer]
        others = np.stack([mass[:, layer, q, q] - itself[:, q] * covered[:, q] for q in range(2)]) / (1 - itself.T)
        _put(row, "same_without_own", interval(others.mean(0, keepdims=True)))
        _put(row, "special", interval(special[:, layer].mean(-1)[None]))
        _put(row, "similarity", interval(similar[:, layer][None]))
        streams = {f"anisotropy_{name}": float(dataset.anisotropy.sel(stream=name)[layer]) for name in STREAMS}
        row |= {"weighted_cosine": float(cosine[layer]), **streams}
        row["relative_cosine"] = row["weighted_cosine"] - row["anisotropy_residual"]
        rows.append(row)
    return rows


def _put(row: Row, name: str, found: Interval) -> None:
    row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def by_head(dataset: xr.Dataset) -> dict[str, Float[np.ndarray, "layers heads"]]:
    """For every head, what its weights say and what it does: `weighted_cosine` of its modes; `similarity`, its
    preference for similar tokens; `same_over_different`, log2 of attention to the own kind of object over that to the
    other, each over what uniform attention gives."""
    mass, area = dataset.mass.mean("image").values.astype(np.float64), dataset.area.mean("image").values
    same, different = (
        np.mean([mass[..., query, region] / area[region] for query, region in PAIRS[kind]], axis=0)
        for kind in ("same", "different")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        over = np.log2(same / different)
    return {
        "weighted_cosine": dataset.weighted_cosine.values.astype(np.float64),
        "similarity": dataset.similarity.mean("image").values.astype(np.float64),
        "same_over_different": over,
    }


def links(dataset: xr.Dataset) -> list[Row]:
    """Whether weights predict behaviour: Spearman's rank correlation over heads of the weighted cosine with each
    preference; over all heads of all layers, and the mean of those within each layer, which depth cannot make.

    NaN where there are too few heads.
    """
    values = by_head(dataset)
    weights = values.pop("weighted_cosine")
    return [
        {
            "preference": name,
            "heads": weights.size,
            "all_heads": _spearman(weights.ravel(), found.ravel()),
            "within_layers": float(np.mean([_spearman(*pair) for pair in zip(weights, found, strict=True)])),
        }
        for name, found in values.items()
    ]


def _spearman(first: Float[np.ndarray, "heads"], second: Float[np.ndarray, "heads"]) -> float:
    from scipy.stats import spearmanr

    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 3 or any(np.ptp(x[known]) == 0 for x in (first, second)):
        return np.nan
    return float(spearmanr(first[known], second[known]).statistic)
