"""Converts measures of attention sinks to a labelled dataset and to tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.results.annotate import Label, annotated
from qkjax.results.bimodality import bimodality
from qkjax.results.intervals import Interval, ratio_interval
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions
from qkjax.vit.config import ViTConfig

PER_HEAD = ("image", "layer", "head")
DIMS = {
    "share": (*PER_HEAD, "key"), "share_without_bias": (*PER_HEAD, "key"), "value_norm": (*PER_HEAD, "key"),
    "top_patch": PER_HEAD, "top_share_without_bias": PER_HEAD, "entropy": PER_HEAD,
    "special_norm": ("image", "stage", "special"), "patch_norm": ("image", "stage", "patch"),
}  # fmt: skip
LABELS = {
    "key": Label("key", "1", "Special token, the mean over patches, or the patch with the largest share."),
    "special": Label("special token", "1", "Class token and registers."),
    "stage": Label("stage", "1", "Residual stream before this layer; the last stage is after the last layer."),
    "patch": Label("patch", "1", "Patch, counted row by row."),
    "photograph": Label("photograph", "", "Photograph that the image shows; intervals resample photographs."),
    "share": Label("share of attention", "1", "Mean attention of the patches to this key."),
    "share_without_bias": Label("share without key bias", "1", "The same, without the key bias of this layer."),
    "value_norm": Label("norm of the value", "1", "Length of the value of this key."),
    "top_patch": Label("top patch", "1", "Index of the patch with the largest share, row by row."),
    "top_share_without_bias": Label("largest share without key bias", "1", "Largest share of any patch without it."),
    "entropy": Label("entropy", "bits", "Entropy of the attention of a patch over keys, averaged over patches."),
    "special_norm": Label("norm of special tokens", "1", "Length of the special tokens in the residual stream."),
    "patch_norm": Label("norm of patches", "1", "Length of the patch tokens in the residual stream."),
    "valley": Label("depth of the valley", "1", "Density at the deepest valley of the norms, over the lower peak."),
    "valley_high": Label("upper end of the depth", "1", "Upper end of the 95% interval over photographs."),
    "high_norm": Label("high norm", "1", "Norm above which patches have a high norm; NaN if there are none."),
    "left_out": Label("image left out", "", "Name of an image that was left out."),
    "reason": Label("reason", "", "Why the image was left out."),
}  # fmt: skip
BINS_PER_OCTAVE = 32
WITHOUT_BIAS = ("share_without_bias", "top_share_without_bias")


def sinks_dataset(
    measures: Mapping[str, np.ndarray],
    config: ViTConfig,
    images: Sequence[str],
    clusters: Sequence[str],
    left_out: Sequence[tuple[str, str]],
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """Collects the measures of attention sinks in a dataset, with the patches of high norm.

    Args:
      measures: measures of every image; see `qkjax.activations.sinks.SinkMeasures`.
      config: architecture of the model, which states the special tokens.
      images: names of the images.
      clusters: for each image, the photograph that it shows.
      left_out: name and reason for each image that was left out.
      attrs: attributes of the dataset.

    Returns:
      A dataset with dimensions image, layer, head, key, stage (one more than layers), special and patch. `valley`,
      `valley_high` and `high_norm` (stage) describe the distribution of the norms of patches. For models with rotary
      positions, there are no variables without the key bias.
    """
    known = {name: value for name, value in measures.items() if config.rotary is None or name not in WITHOUT_BIAS}
    variables = {name: (DIMS[name], value) for name, value in known.items()}
    special = config.prefix_names
    valleys = [norm_valley(measures["patch_norm"][:, i], clusters) for i in range(config.depth + 1)]
    variables |= {name: ("stage", np.array(v)) for name, v in zip(VALLEY, zip(*valleys, strict=True), strict=True)}
    variables |= {
        "left_out": ("missing", texts([name for name, _ in left_out])),
        "reason": ("missing", texts([reason for _, reason in left_out])),
    }
    coords = {
        "image": ("image", texts(images)),
        "photograph": ("image", texts(clusters)),
        "key": ("key", [*special, "patches", "top patch"]),
        "special": ("special", np.array(special, dtype=object)),
    }
    uniform = 1 / (config.prefix_tokens + measures["patch_norm"].shape[-1])
    dataset = annotated(xr.Dataset(variables, coords, {**attrs, "uniform": uniform, **versions()}), LABELS)
    return dataset.assign_attrs(summary=summary(dataset))


VALLEY = ("valley", "valley_high", "high_norm")


def norm_valley(
    norms: Float[np.ndarray, "images patches"], clusters: Sequence[str] | np.ndarray
) -> tuple[float, float, float]:
    """The deepest valley of the distribution of the norms of patches, on a logarithmic scale.

    Returns:
      Depth of the valley, the upper end of its interval, and the norm at the valley. The norm is NaN if the
      distribution is not bimodal, or if most patches are above the valley.
    """
    log = np.log2(np.maximum(norms, np.finfo(np.float32).tiny).astype(np.float64))
    lowest = np.floor(log.min())
    bins = ((log - lowest) * BINS_PER_OCTAVE).astype(int)
    names, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
    counts = np.zeros((len(names), bins.max() + 1), int)
    np.add.at(counts, (np.broadcast_to(cluster[:, None], bins.shape), bins), 1)
    found = bimodality(counts)
    is_high = found.is_bimodal and found.above < 0.5
    return found.depth, found.depth_high, 2 ** (lowest + found.place / BINS_PER_OCTAVE) if is_high else np.nan


def by_photograph(values: Float[np.ndarray, "images"], clusters: Sequence[str] | np.ndarray) -> Interval:
    """The mean over images, and its 95% bootstrap interval, which resamples photographs with all of their images."""
    _, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
    return ratio_interval(np.asarray(values, np.float64)[None], np.ones((1, len(values))), cluster)


def head_rows(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per head: the share of each kind of key with its 95% interval, and the value norms.

    - `class`, `registers` (all together) and `top_patch`: share of the attention of the patches. Columns that end in
      `_low` and `_high` are the ends of intervals, and `_without_bias` is the share without the key bias. Models
      without the kind of token have no columns for it.
    - `entropy`: entropy of the attention, in bits.
    - `class_value`, `registers_value`, `top_patch_value`: norm of the value of the key (for registers, the mean),
      divided by the mean norm of the values of patches.
    """
    kinds, clusters = kinds_of(dataset), dataset.photograph.values
    keys = {name: dataset[name].transpose(*PER_HEAD, "key").values for name in ("share", "value_norm")}
    without = dataset["share_without_bias"].transpose(*PER_HEAD, "key").values if has_bias(dataset) else None
    patches = list(dataset.key.values).index("patches")
    rows = []
    for layer, head in np.ndindex(dataset.sizes["layer"], dataset.sizes["head"]):
        row: Row = {"layer": layer, "head": head}
        for kind, index in kinds.items():
            own = keys["share"][:, layer, head][:, index].sum(-1)
            row |= dict(zip((kind, f"{kind}_low", f"{kind}_high"), by_photograph(own, clusters), strict=True))
            if without is not None:
                row[f"{kind}_without_bias"] = float(without[:, layer, head][:, index].sum(-1).mean())
            value = keys["value_norm"][:, layer, head].mean(0)
            row[f"{kind}_value"] = float(value[index].mean() / value[patches])
        if without is not None:
            row["largest_without_bias"] = float(dataset.top_share_without_bias.values[:, layer, head].mean())
        rows.append(row | {"entropy": float(dataset.entropy.values[:, layer, head].mean())})
    return rows


def kinds_of(dataset: xr.Dataset) -> dict[str, list[int]]:
    """For each kind of key, its indices among the keys: the class token, the registers, and the top patch."""
    names = [str(name) for name in dataset.key.values]
    special = {"class": [i for i, name in enumerate(names) if name == "class token"]}
    special["registers"] = [i for i, name in enumerate(names) if name.startswith(("register", "distillation"))]
    return {kind: index for kind, index in special.items() if index} | {"top_patch": [len(names) - 1]}


def has_bias(dataset: xr.Dataset) -> bool:
    """Whether the dataset has the measures without the key bias, which models with rotary positions lack."""
    return "share_without_bias" in dataset


def layer_rows(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per layer: the columns of `head_rows`, as means over heads with their own intervals."""
    of_heads = [name for name in dataset.data_vars if "head" in dataset[name].dims]
    rows = head_rows(dataset[of_heads].mean("head").expand_dims("head", axis=2))
    return [{name: value for name, value in row.items() if name != "head"} for row in rows]


def stage_rows(dataset: xr.Dataset) -> list[Row]:
    """A table with one row per stage of the residual stream: norms by kind of token, and the patches of high norm.

    `patch_99` is the 99% quantile of the norms of patches. `valley` and `valley_high` are the depth of the deepest
    valley and the upper end of its interval; patches above `high_norm` have a high norm, and `high_norm_share` is their
    share of all patches (NaN and 0 if the distribution is not bimodal).
    """
    norms, special = dataset.patch_norm.values, dataset.special_norm.values
    names = [str(name) for name in dataset.special.values]
    rows = []
    for stage in range(dataset.sizes["stage"]):
        own, row = norms[:, stage], {"stage": stage}
        row |= {name.replace(" ", "_"): float(special[:, stage, i].mean()) for i, name in enumerate(names)}
        row |= {"patch_median": float(np.median(own)), "patch_99": float(np.quantile(own, 0.99)),
                "patch_largest": float(own.max())}  # fmt: skip
        row |= {name: float(dataset[name].values[stage]) for name in VALLEY}
        rows.append(row | {"high_norm_share": float((own > row["high_norm"]).mean())})
    return rows


def summary(dataset: xr.Dataset) -> str:
    """Summarises the result in words: the strongest sinks, what the key bias explains, and patches of high norm."""
    heads, kinds = head_rows(dataset), kinds_of(dataset)
    sentences = [f"Under uniform attention, each token would receive {dataset.attrs['uniform']:.4f}."]
    titles = {"class": "the class token", "registers": "the registers", "top_patch": "a single patch"}
    for kind in kinds:
        top = max(heads, key=lambda row: row[kind])
        bias = f"; {top[f'{kind}_without_bias']:.3f} without the key bias" if has_bias(dataset) else ""
        mean = np.mean([row[kind] for row in heads])
        sentences.append(
            f"Patches give {mean:.3f} of their attention to {titles[kind]} (mean over heads), most in "
            f"L{top['layer']} H{top['head']}: {top[kind]:.2f} [{top[f'{kind}_low']:.2f}, {top[f'{kind}_high']:.2f}]"
            f"{bias}."
        )
    stages = [row for row in stage_rows(dataset) if np.isfinite(row["high_norm"])]
    if not stages:
        return " ".join([*sentences, "No stage has patches of high norm: no distribution of norms is bimodal."])
    most = max(stages, key=lambda row: row["high_norm_share"])
    named = ", ".join(str(row["stage"]) for row in stages)
    sentences.append(
        f"Patches of high norm exist at stage {named}; their largest share is {most['high_norm_share']:.2%} at stage "
        f"{most['stage']} (norm above {most['high_norm']:.1f})."
    )
    return " ".join(sentences)
