"""Converts measures of attention preference to a labelled dataset and to tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.images.scenes import REGIONS
from qkjax.interaction.metrics import Metrics
from qkjax.results.annotate import Label, annotated
from qkjax.results.intervals import Interval, ends_of, interval, ratio_interval, resamples
from qkjax.results.rows import Row, head_mean
from qkjax.results.store import texts, versions

QUERIES, STREAMS = ("target", "distractors"), ("residual", "norm")
PER_TOKEN = ("image", "layer", "head", "query")
DIMS = {
    "mass": (*PER_TOKEN, "region"), "own": PER_TOKEN, "special": PER_TOKEN, "similarity": PER_TOKEN[:3],
    "area": ("image", "region"), "place": ("image", "query"), "covered": ("image", "query"),
    "target_patches": ("image",),
}  # fmt: skip
LABELS = {
    "mass": Label("attention mass", "1", "Of a query's attention to patches, the share on a region."),
    "own": Label("attention to itself", "1", "Of a query's attention to patches, the share on its own patch."),
    "special": Label("attention to special tokens", "1", "Share of attention on the class token and registers."),
    "similarity": Label("preference for similar tokens", "1",
                        "Mean cosine between a query and the tokens, weighted by attention, minus the mean with "
                        "uniform attention."),
    "area": Label("area", "1", "Share of patches in a region, equal to its mass if attention is uniform."),
    "place": Label("query patch", "1", "Index of the query patch, counted row by row."),
    "covered": Label("covered share", "1", "Share of the query patch that its own region covers."),
    "target_patches": Label("target area", "patches", "Area of the target in patches."),
    "anisotropy": Label("anisotropy", "1", "Mean cosine between the centre tokens of two different images."),
    "weighted_cosine": Label("weighted cosine", "1", "Mean cosine of the modes, weighted by s."),
    "left_out": Label("image left out", "", "Name of an image that was left out."),
    "reason": Label("reason", "", "Why the image was left out."),
}  # fmt: skip
KINDS = ("same", "different", "background")
PAIRS = {"same": ((0, 0), (1, 1)), "different": ((0, 1), (1, 0)), "background": ((0, 2), (1, 2))}
"""For each kind of attention, two pairs of indices (query, region): one with the target token as query, one with a
distractor token as query."""


def preference_dataset(
    measures: Mapping[str, np.ndarray],
    images: Sequence[str],
    anisotropy: Float[np.ndarray, "streams layers"],
    left_out: Sequence[tuple[str, str]],
    metrics: Metrics,
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """Collects in a dataset the measures of attention preference for every image and head.

    Returns:
      A dataset with dimensions image, layer, head, query (a token of the target, or of a distractor) and region
      (target, distractors, background). The variables are the measures of attention, the `anisotropy` (stream, layer)
      of tokens, and the `weighted_cosine` (layer, head) of modes. `left_out` contains the names of images that were
      left out, and `reason` the reasons.
    """
    variables = {name: (DIMS[name], value) for name, value in measures.items()}
    variables |= {
        "anisotropy": (("stream", "layer"), anisotropy),
        "weighted_cosine": (("layer", "head"), np.asarray(metrics.weighted_cosine)),
        "left_out": ("missing", texts([name for name, _ in left_out])),
        "reason": ("missing", texts([reason for _, reason in left_out])),
    }
    coords = {
        "image": ("image", texts(images)),
        "query": ("query", list(QUERIES)),
        "region": ("region", list(REGIONS)),
        "stream": ("stream", list(STREAMS)),
    }
    dataset = annotated(xr.Dataset(variables, coords, {**attrs, **versions()}), LABELS)
    return dataset.assign_attrs(summary=summary(preference_table(dataset)))


def summary(rows: Sequence[Row]) -> str:
    """Summarises the result in words: in which layers attention to the query's own category is highest and lowest."""
    peak = max(rows, key=lambda row: row["same_times_uniform"])
    low = min(rows, key=lambda row: row["same_times_uniform"])
    similar = max(rows, key=lambda row: row["similarity"])

    def of(row: Row, name: str) -> str:
        return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"

    return (
        f"Attention to the query's own category is highest in layer {peak['layer']}: {of(peak, 'same_times_uniform')} "
        f"times that of uniform attention (95% interval over images; chance 1). It is lowest in layer {low['layer']}: "
        f"{of(low, 'same_times_uniform')}. The preference for similar tokens is largest in layer {similar['layer']}: "
        f"{of(similar, 'similarity')} (mean cosine minus that of uniform attention; chance 0)."
    )


def preference_table(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per layer: means over heads, and the ends of the 95% intervals of these means over images.

    The columns are as follows; columns that end in `_low` and `_high` are the ends of intervals.

    - `same`, `different` and `background`: attention mass on the query's own category, on the opposite category and on
      the background. Each column is the mean of the values for the target query and the distractor query (the paper,
      figure 2). The three columns sum to 1.
    - `same_times_uniform` and so on: attention mass divided by the mass under uniform attention, which is the area of
      the region. Numerator and denominator are means over images.
    - `same_without_own`: `same` without the query's attention to itself; NaN if the query attends only to itself.
    - `special`: share of all attention that falls on the class token and registers.
    - `similarity`: preference for similar tokens.
    - `weighted_cosine`: weighted cosine of the modes.
    - `anisotropy_residual` and `anisotropy_norm`: anisotropy of the residual stream and of the LayerNorm's output.
    - `relative_cosine`: weighted cosine minus the anisotropy of the residual stream (the paper, figure S4).
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
        others = np.stack([mass[:, layer, q, q] - itself[:, q] * covered[:, q] for q in range(2)])
        with np.errstate(divide="ignore", invalid="ignore"):  # a single head may attend to nothing else
            others = others / (1 - itself.T)
        _put(row, "same_without_own", interval(others.mean(0, keepdims=True)))
        _put(row, "special", interval(special[:, layer].mean(-1)[None]))
        _put(row, "similarity", interval(similar[:, layer][None]))
        streams = {f"anisotropy_{name}": float(dataset.anisotropy.sel(stream=name)[layer]) for name in STREAMS}
        row |= {"weighted_cosine": float(cosine[layer]), **streams}
        row["relative_cosine"] = row["weighted_cosine"] - row["anisotropy_residual"]
        rows.append(row)
    return rows


def preference_by_head(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per head. The columns are those of `preference_table` that depend on the head."""
    per_model = ("relative_depth", "relative_cosine", *(f"anisotropy_{name}" for name in STREAMS))
    rows = [
        {"layer": row["layer"], "head": head, **{k: v for k, v in row.items() if k not in ("layer", *per_model)}}
        for head in range(dataset.sizes["head"])
        for row in preference_table(dataset.isel(head=[head]))
    ]
    return sorted(rows, key=lambda row: (row["layer"], row["head"]))


def _put(row: Row, name: str, estimate: Interval) -> None:
    row |= dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))


def by_head(
    dataset: xr.Dataset, image_weights: Float[np.ndarray, "*resamples images"] | None = None
) -> dict[str, Float[np.ndarray, "*resamples layers heads"]]:
    """Computes two preferences of every head.

    `similarity` is the preference for similar tokens. `same_over_different` is log2 of a ratio: attention to the
    query's own category divided by attention to the opposite category, where both are relative to uniform attention.

    Args:
      dataset: the result of `attention_preference`.
      image_weights: weights of the images in each bootstrap resample; if None, all images have equal weights.
    """
    names = ("mass", "area", "similarity")
    images = {name: dataset[name].transpose("image", ...).values.astype(np.float64) for name in names}
    if image_weights is None:
        image_weights = np.full(dataset.sizes["image"], 1 / dataset.sizes["image"])
    mass, area, similarity = (np.tensordot(image_weights, images[name], axes=1) for name in names)
    area = area[..., None, None, :]
    same, different = (
        np.mean([mass[..., query, region] / area[..., region] for query, region in PAIRS[kind]], axis=0)
        for kind in ("same", "different")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"similarity": similarity, "same_over_different": np.log2(same / different)}


def links(dataset: xr.Dataset) -> list[Row]:
    """Spearman's rank correlations, over heads, between the weighted cosine of a head and each of its preferences.

    `all_heads` is the correlation over all heads of all layers. `within_layers` is the mean of the correlations within
    single layers; differences between layers cannot explain these correlations. The 95% bootstrap intervals resample
    images; heads are fixed. A correlation is NaN if there are too few heads.
    """
    weights, heads = dataset.weighted_cosine.values.astype(np.float64), dataset.weighted_cosine.size
    behaviours, resampled = by_head(dataset), by_head(dataset, resamples(dataset.sizes["image"], 1))
    rows = []
    for name, behaviour in behaviours.items():
        row: Row = {"preference": name, "heads": heads}
        for how, correlated in {"all_heads": _over_all, "within_layers": _within_layers}.items():
            ends = ends_of(correlated(weights, resampled[name])) if dataset.sizes["image"] > 1 else (np.nan, np.nan)
            _put(row, how, (float(correlated(weights, behaviour)), *ends))
        rows.append(row)
    return rows


def _over_all(weights: Float[np.ndarray, "layers heads"], behaviour: Float[np.ndarray, "*resamples layers heads"]):
    return _spearman(weights.ravel(), behaviour.reshape(*behaviour.shape[:-2], -1))


def _within_layers(weights: Float[np.ndarray, "layers heads"], behaviour: Float[np.ndarray, "*resamples layers heads"]):
    return np.mean([_spearman(own, behaviour[..., layer, :]) for layer, own in enumerate(weights)], axis=0)


def _spearman(
    first: Float[np.ndarray, "heads"], second: Float[np.ndarray, "*resamples heads"]
) -> Float[np.ndarray, "*resamples"]:
    """Rank correlations over the heads for which both values are finite.

    A correlation is NaN if there are fewer than three such heads, or if all values of one of the two quantities are
    equal.
    """
    from scipy.stats import rankdata

    known = np.isfinite(first) & np.isfinite(second).reshape(-1, len(first)).all(0)
    if known.sum() < 3:
        return np.full(second.shape[:-1], np.nan)
    ranks = [rankdata(x[..., known], axis=-1) for x in (first, second)]
    one, other = (x - x.mean(-1, keepdims=True) for x in ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1)))
