"""Converts the results of ablations to a labelled dataset and to a table."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.analyses.ablate.plan import AblationSpec
from qkjax.images.labels import Groups
from qkjax.results.annotate import Label, annotated
from qkjax.results.intervals import interval
from qkjax.results.labels import RANDOM, READOUTS, TARGETED, UNEDITED, in_words, interval_over
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions

SHARES = ("share", "strength_share", "logits_share")
DIMS = {
    1: ("ablation",),
    2: ("ablation", "image"),
    3: ("ablation", "layer", "head"),
    4: ("ablation", "image", "layer", "head"),
}


LABELS = {
    "representation_cosine": Label("cosine of the representation", "1", "Cosine with the original representation."),
    "token_cosine": Label(
        "cosine of the patch tokens", "1", "Cosine with the original tokens of the last layer, mean over queries."
    ),
    "logits_kl": Label("divergence of the classes", "bits", "KL(original || edited) of the class probabilities."),
    "attention_js": Label("divergence of attention", "bits", "Jensen-Shannon divergence from the original."),
    "class_attention_js": Label("divergence of the class token's attention", "bits", "Jensen-Shannon divergence."),
    "attention_entropy": Label("attention entropy", "bits", "Entropy of the attention of query patches over keys."),
    "preference": Label(
        "preference for similar tokens", "1", "Mean cosine with attended tokens, minus that under uniform attention."
    ),
    "share": Label("changed share", "1", "Size of the change of each head in the measure of the ablation."),
    "strength_share": Label("changed share of strength", "1", "||M' - M||^2 / ||M||^2 of each head."),
    "logits_share": Label(
        "changed share of the logits", "1", "Variance over keys of the change of the logits, by that of y_i M y_j."
    ),
    "kept": Label("kept share", "1", "Share of an edit's squared strength that new kernels represent."),
    "out_of_reach": Label(
        "share out of reach", "1", "Share of an edited head's squared strength in purely positional planes."
    ),
    "place_change": Label(
        "change that depends on place", "1", "Share of the squared change of M(delta) that is not that of its mean."
    ),
    "cka": Label("linear CKA", "1", "Similarity of all representations to the original representations."),
    "right_head": Label("classified correctly", "1", "Whether the model's own classifier is correct."),
    "right_probe": Label("classified correctly", "1", "Whether a linear probe of the original model is correct."),
    "right_neighbours": Label("classified correctly", "1", "Whether the nearest neighbours are correct."),
    "unreadable": Label("unreadable image", "", "Name of an image that could not be read."),
    "reason": Label("reason", "", "Why the image could not be read."),
    "edit": Label("edit", "", "Kind of edit; see qkjax.interaction.edit."),
    "select": Label("selection", "", "Selection of modes; see qkjax.interaction.select."),
    "control": Label("control", "", "Seed of random modes of matched size; -1 for the selected modes."),
    "match": Label("measure", "", "Measure of doses and controls: logits or strength; see qkjax.interaction.dose."),
    "group": Label("group", "1", "Group of the image; intervals resample groups. See the attribute interval_unit."),
    "key_bias": Label("key bias", "1", "0 if the edited heads lose their key bias."),
    "condition": Label("condition", "", "Selection without dose and layers; names one dose-response curve."),
    "layers": Label("layers", "", "Layers in the selection; empty for all layers."),
    "dose": Label("dose", "1", "Dose in the selection; NaN if there is no dose."),
}


def ablations_dataset(
    specs: Sequence[AblationSpec],
    effects: Sequence[Mapping[str, np.ndarray]],
    images: Sequence[str],
    groups: Groups,
    left_out: Sequence[tuple[str, str]],
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """Collects the effects of every ablation on every image in a dataset.

    Args:
      specs: the ablations of the plan.
      effects: for each name of an effect, a list: first the effects on the original model, then the effects of each
        ablation.
      images: names of the images that could be read.
      groups: the group of each of these images, which intervals resample.
      left_out: name and reason for each image that could not be read.
      attrs: attributes of the dataset.

    Returns:
      A dataset with dimensions ablation (0 is the original model), image, layer and head. The variables are the fields
      of `Effects`, and the following. `cka` is the similarity of the representations of all images to the original
      representations. `right_head`, `right_probe` and `right_neighbours` are present if there are labels (see
      `Readout`). `share` is the size of the change of each head, divided by the size of the head, in the measure of the
      ablation (the coordinate `match`); `strength_share` and `logits_share` are the same in either measure, and a model
      with rotary positions has no `logits_share` (see `qkjax.interaction.dose`). `kept` is the share of the edited
      interaction's squared strength that the kernels represent. For a model
      with rotary positions, `out_of_reach` is the share of each edited head that no edit can change, and `place_change`
      the share of the change that depends on the places of query and key. `unreadable` contains the names of unreadable
      images, and `reason` the reasons. The coordinates edit, select, control (seed; -1 if the ablation is not a
      control), key_bias, match, condition, layers and dose describe each ablation. The coordinate group contains the
      group of each image, and the attribute interval_unit says what a group is.
    """
    variables = {}
    for name in effects[0]:
        values = np.stack([item[name] for item in effects])
        variables[name] = (DIMS[values.ndim], values)
    for place, name in enumerate(("unreadable", "reason")):
        variables[name] = ("broken", texts([item[place] for item in left_out]))
    edits = [spec.edit for spec in specs]
    described = {
        "edit": texts(["none", *(e.kind for e in edits)]),
        "select": texts(["", *(e.selection for e in edits)]),
        "control": np.array([-1, *(-1 if e.control is None else e.control for e in edits)]),
        "key_bias": np.array([1, *(int(e.key_bias) for e in edits)], np.int8),
        "match": texts(["", *(e.match for e in edits)]),
        "condition": texts(["", *(spec.condition for spec in specs)]),
        "layers": texts(["", *(spec.layers for spec in specs)]),
        "dose": np.array([np.nan, *(spec.dose for spec in specs)]),
    }
    coords = {name: ("ablation", value) for name, value in described.items()}
    coords |= {"image": ("image", texts(images)), "group": ("image", np.array(groups.of_images))}
    attrs = {**attrs, "interval_unit": groups.unit, **versions()}
    dataset = annotated(xr.Dataset(variables, coords, attrs), LABELS)
    return dataset.assign_attrs(summary=summary(ablation_table(dataset)))


def summary(rows: Sequence[Row]) -> str:
    """Summarises the result in words: the largest effect, and how many ablations differ from their controls."""
    targeted = [row for row in rows if row["modes"] == TARGETED]
    if not targeted:
        return "The plan contains no ablation."
    most = max(targeted, key=lambda row: row["representation"])
    name = in_words(f"{most['edit']} {most['select']}", most["key_bias"])
    unit = interval_over(most)
    sentences = [
        f"The ablation that changes the representation most is {name}: 1 - cosine "
        f"{most['representation']:.3f} [{most['representation_low']:.3f}, {most['representation_high']:.3f}] (95% "
        f"interval over {unit})."
    ]
    compared = [row for row in targeted if np.isfinite(row["representation_over_random_low"])]
    if compared:
        more = sum(row["representation_over_random_low"] > 0 for row in compared)
        less = sum(row["representation_over_random_high"] < 0 for row in compared)
        sentences.append(
            f"Of {len(compared)} ablations that have random controls of matched size, {more} change the "
            f"representation more than their controls, and {less} change it less (the 95% interval of the difference, "
            f"over {unit} and random draws, excludes 0)."
        )
    return " ".join(sentences)


def image_effects(dataset: xr.Dataset) -> dict[str, Float[np.ndarray, "ablation image"]]:
    """For each effect, one number per ablation and image. Effects that are NaN for this model are left out.

    `representation` and `tokens` are 1 - cosine. `logits` is a KL divergence in bits. `attention` and `class_attention`
    are Jensen-Shannon divergences in bits. `entropy` (in bits) and `preference` are changes from the unedited model.
    `attention`, `class_attention`, `entropy` and `preference` are means over layers and heads. `head`, `probe` and
    `neighbours` are 1 for an image that is classified correctly, and 0 otherwise.
    """

    def over_heads(name):
        return dataset[name].mean(("layer", "head")).values.astype(np.float64)

    effects = {
        "representation": 1 - dataset.representation_cosine.values.astype(np.float64),
        "tokens": 1 - dataset.token_cosine.values.astype(np.float64),
        "logits": dataset.logits_kl.values.astype(np.float64),
        "attention": over_heads("attention_js"),
        "class_attention": over_heads("class_attention_js"),
        "entropy": over_heads("attention_entropy") - over_heads("attention_entropy")[:1],
        "preference": over_heads("preference") - over_heads("preference")[:1],
    }
    effects |= {name: dataset[f"right_{name}"].values * 1.0 for name in READOUTS if f"right_{name}" in dataset}
    return {name: values for name, values in effects.items() if not np.isnan(values).all()}


def ablation_table(dataset: xr.Dataset) -> list[Row]:
    """A table with one row for the unedited model, one per ablation, and one for all controls of an ablation.

    For each effect of `image_effects`, the table has the mean and its 95% interval. The columns with the ends of the
    interval end in `_low` and `_high`. Intervals resample groups of images, such as the photographs of which the images
    are crops; the columns `interval_unit` and `groups` state what a group is, and how many there are. For controls, the
    intervals also resample the random draws (see `interval`). For an ablation with controls, the columns that contain
    `_over_random` state the difference from the controls, paired by image, and the interval of this difference.
    Missing values are NaN. `share`, `strength_share` and `logits_share` are means over the edited heads, and over the
    draws of controls.
    """
    effects = image_effects(dataset)
    groups: dict[tuple, dict[str, list[int]]] = {}
    for index in range(dataset.sizes["ablation"]):
        key = tuple(dataset[name].values[index] for name in ("edit", "select", "key_bias", "match"))
        kind = UNEDITED if index == 0 else TARGETED if dataset.control.values[index] < 0 else RANDOM
        groups.setdefault(key, {}).setdefault(kind, []).append(index)
    return [
        _row(dataset, effects, kind, indices, group.get(RANDOM) if kind == TARGETED else None)
        for group in groups.values()
        for kind, indices in group.items()
    ]


def _row(dataset: xr.Dataset, effects: Mapping, kind: str, indices: list[int], controls: list[int] | None) -> Row:
    first, groups = dataset.isel(ablation=indices[0]), dataset.group.values
    row: Row = {name: str(first[name].values) for name in ("edit", "select", "condition", "layers", "match")}
    row |= {
        "dose": float(first.dose),
        "key_bias": int(first.key_bias),
        "modes": kind,
        "seeds": len(indices) if kind == RANDOM else 0,
        **{name: _mean_of_edited(dataset, name, indices) for name in SHARES if name in dataset},
        "kept": float(dataset.kept.values[indices].min()),
        "cka": float(dataset.cka.values[indices].mean()),
        "interval_unit": dataset.attrs["interval_unit"],
        "groups": len(np.unique(groups)),
    }
    for name, values in effects.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(values[indices], groups), strict=True))
        over = interval(values[indices] - values[controls], groups) if controls else (np.nan,) * 3
        difference = f"{name}_over_random"
        row |= dict(zip((difference, f"{difference}_low", f"{difference}_high"), over, strict=True))
    return row


def _mean_of_edited(dataset: xr.Dataset, name: str, indices: list[int]) -> float:
    """The mean of a share over the heads in which an ablation changes something."""
    values = dataset[name].values[indices]
    return float(values[values > 0].mean()) if values.any() else 0.0
