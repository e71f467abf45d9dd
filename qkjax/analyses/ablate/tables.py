"""The results of ablations as a labelled dataset and as a table."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.analyses.ablate.plan import Line
from qkjax.results.intervals import interval
from qkjax.results.labels import RANDOM, READOUTS, TARGETED, UNEDITED
from qkjax.results.rows import Row
from qkjax.results.store import texts, versions

DIMS = {
    1: ("ablation",),
    2: ("ablation", "image"),
    3: ("ablation", "layer", "head"),
    4: ("ablation", "image", "layer", "head"),
}


def ablations_dataset(
    lines: Sequence[Line],
    found: Sequence[Mapping[str, np.ndarray]],
    images: Sequence[str],
    left_out: Sequence[tuple[str, str]],
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """What every ablation does to every image.

    Args:
      lines: of the plan.
      found: effects by name, of the unedited model and then of each line; see `ablate`.
      images: names of those that could be read.
      left_out: names of the others, and why.

    Returns:
      A dataset with dims ablation (0 is the unedited model), image, layer, head: the fields of `Effects`; `cka` of the
      representations of all images with the unedited ones; `right_head`, `right_probe`, `right_neighbours` where there
      are labels (see `Readout`); `share` of each head's squared strength that is edited, and `kept`, what the kernels
      hold of the edited interaction. Coordinates say what each ablation is: edit, select, control (seed; -1: none),
      key_bias, condition, layers, dose. `unreadable` names of images, and each one's `reason`.
    """
    variables = {}
    for name in found[0]:
        values = np.stack([item[name] for item in found])
        variables[name] = (DIMS[values.ndim], values)
    for place, name in enumerate(("unreadable", "reason")):
        variables[name] = ("broken", texts([item[place] for item in left_out]))
    edits = [line.edit for line in lines]
    said = {
        "edit": texts(["none", *(e.kind for e in edits)]),
        "select": texts(["", *(e.selection for e in edits)]),
        "control": np.array([-1, *(-1 if e.control is None else e.control for e in edits)]),
        "key_bias": np.array([1, *(int(e.key_bias) for e in edits)], np.int8),
        "condition": texts(["", *(line.condition for line in lines)]),
        "layers": texts(["", *(line.layers for line in lines)]),
        "dose": np.array([np.nan, *(line.dose for line in lines)]),
    }
    coords = {name: ("ablation", value) for name, value in said.items()}
    return xr.Dataset(variables, {**coords, "image": ("image", texts(images))}, {**attrs, **versions()})


def image_effects(dataset: xr.Dataset) -> dict[str, Float[np.ndarray, "ablation image"]]:
    """One number for each ablation and image of each effect that the model has.

    `representation`, `tokens`: 1 - cosine. `attention`, `class_attention`: Jensen-Shannon divergence, bits; `entropy`
    (bits) and `preference`: change from the unedited model; all four mean over layers and heads. `logits`: KL
    divergence, bits. `head`, `probe`, `neighbours`: 1 where classified rightly.
    """

    def over_heads(name):
        return dataset[name].mean(("layer", "head")).values.astype(np.float64)

    found = {
        "representation": 1 - dataset.representation_cosine.values.astype(np.float64),
        "tokens": 1 - dataset.token_cosine.values.astype(np.float64),
        "logits": dataset.logits_kl.values.astype(np.float64),
        "attention": over_heads("attention_js"),
        "class_attention": over_heads("class_attention_js"),
        "entropy": over_heads("attention_entropy") - over_heads("attention_entropy")[:1],
        "preference": over_heads("preference") - over_heads("preference")[:1],
    }
    found |= {name: dataset[f"right_{name}"].values * 1.0 for name in READOUTS if f"right_{name}" in dataset}
    return {name: values for name, values in found.items() if not np.isnan(values).all()}


def ablation_table(dataset: xr.Dataset) -> list[Row]:
    """A row for the unedited model, one for each ablation and one for all its controls together.

    Each effect of `image_effects` has its mean, and `_low` and `_high`, the ends of its 95% interval over images and,
    of controls, seeds (percentile bootstrap, both resampled, see `interval`); in rows of targeted ablations with
    controls also `_over_random`, the difference to these, image by image, with its own. NaN where there is none. Images
    are taken to be independent of each other; crops of one photograph are not quite. `share` is the mean over the heads
    edited.
    """
    effects = image_effects(dataset)
    groups: dict[tuple, dict[str, list[int]]] = {}
    for index in range(dataset.sizes["ablation"]):
        key = tuple(dataset[name].values[index] for name in ("edit", "select", "key_bias"))
        kind = UNEDITED if index == 0 else TARGETED if dataset.control.values[index] < 0 else RANDOM
        groups.setdefault(key, {}).setdefault(kind, []).append(index)
    return [
        _row(dataset, effects, kind, indices, group.get(RANDOM) if kind == TARGETED else None)
        for group in groups.values()
        for kind, indices in group.items()
    ]


def _row(dataset: xr.Dataset, effects: Mapping, kind: str, indices: list[int], controls: list[int] | None) -> Row:
    first = dataset.isel(ablation=indices[0])
    share = dataset.share.values[indices]
    row: Row = {name: str(first[name].values) for name in ("edit", "select", "condition", "layers")}
    row |= {
        "dose": float(first.dose),
        "key_bias": int(first.key_bias),
        "modes": kind,
        "seeds": len(indices) if kind == RANDOM else 0,
        "share": float(share[share > 0].mean()) if share.any() else 0.0,
        "kept": float(dataset.kept.values[indices].min()),
        "cka": float(dataset.cka.values[indices].mean()),
    }
    for name, values in effects.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(values[indices]), strict=True))
        over = interval(values[indices] - values[controls]) if controls else (np.nan,) * 3
        difference = f"{name}_over_random"
        row |= dict(zip((difference, f"{difference}_low", f"{difference}_high"), over, strict=True))
    return row
