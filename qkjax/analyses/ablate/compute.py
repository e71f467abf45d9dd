"""Measures, on a set of images, the effects of editing a model's modes. (Ablations are not in the paper.)"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.analyses.ablate.ablator import WHOLE
from qkjax.analyses.ablate.plan import Plan, specs_of
from qkjax.analyses.ablate.readout import Labels, check_labels, labels_of
from qkjax.analyses.ablate.run import SIZES, Ablations, Model, check_specs, run
from qkjax.analyses.ablate.store import Store
from qkjax.analyses.ablate.tables import ablations_dataset
from qkjax.analyses.decomposition import decompose, frame_attrs, query_key
from qkjax.analyses.edit import changed_share
from qkjax.analyses.edit_rotary import require_own_width
from qkjax.errors import QkjaxError
from qkjax.images.default_set import photographs
from qkjax.images.labels import Groups, groups_of
from qkjax.images.sets import ImageSet
from qkjax.interaction.dose import Match
from qkjax.interaction.metrics import measure
from qkjax.passes.inputs import for_photographs, whole_grid
from qkjax.passes.options import PassOptions
from qkjax.passes.settings import require_image_set, settings_of
from qkjax.passes.shares import check_shard
from qkjax.vit.patches import query_places
from qkjax.weights.checkpoint import Checkpoint, origin_of


def ablate(
    checkpoint: Checkpoint,
    plan: Plan,
    images: ImageSet | None = None,
    *,
    match: Match = "logits",
    labels: bool | Labels = False,
    groups: Sequence[int] | None = None,
    queries: int = 16,
    exact: bool = False,
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures how each edit in a plan changes attention, representations and accuracy.

    For a model with rotary positions, the edits act on the modes of the mean over places; see `ablations_dataset`.

    Each finished ablation is saved in its own file in the folder `partial`. After an interruption, or if the plan has
    grown, the next call therefore computes only the missing ablations. Equivalent ablations are computed once.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      plan: the path of a TOML file, or a list of grids such as [{"edit": "drop", "select": "cosine>0.5"}]; see
        `qkjax.analyses.ablate.plan`.
      images: the image set; by default the photographs of scikit-image and scikit-learn, and crops of these
        photographs.
      match: the measure of doses such as "grouping=0.3", and the measure in which random controls are matched: the
        variance of the attention logits over the images ("logits"), or the squared strength of the weights
        ("strength"); see `qkjax.interaction.dose`. A grid of the plan may state its own measure. Models with rotary
        positions only support "strength".
      labels: the class of each image, or True. With True, the classes are the outermost folders of the image set, or
        the subjects of the default photographs. If there are labels, accuracy is also measured.
      groups: a number for each image. Images with the same number, such as crops of one photograph, are not
        independent, and intervals resample groups. By default, the groups are the photographs of the default set, and
        every image of any other set is its own group.
      queries: number of evenly spaced query patches per image. For these queries, attention over all keys is compared.
      exact: whether to widen all heads to 2 head_dim + 1 columns, which suffice for any edit. The kernels then
        represent symmetric parts and rotated modes exactly, but the passes take longer. Not for models with rotary
        positions.
      options: batch size, resolution, floating-point format and share. If there are several shares, they divide the
        ablations among themselves, and each share also runs the original model.
      partial: folder in which finished ablations are saved; the caller removes the folder. If None, nothing is saved.
      fresh: discard the finished ablations in `partial`.

    Returns:
      A dataset with dimensions ablation (0 is the original model), image, layer and head; see `ablations_dataset`.

    Raises:
      QkjaxError: the plan is invalid, no image is readable, a class has too few images, a file cannot be written, or
        the model has rotary positions and `match` is "logits".
      ShardFinished: the ablations of this share are finished and saved, but those of another share are not.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> few, _ = qkjax.images.photographs().spread(4)
      >>> result = qkjax.ablate(checkpoint, [{"edit": "drop", "select": "cosine>0.5 layers=0-3"}], few)
      >>> result.sizes["ablation"], result.attention_js.dims
      (2, ('ablation', 'image', 'layer', 'head'))
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    check_shard(partial, options.shard)
    checkpoint = for_photographs(checkpoint)
    require_own_width(checkpoint.config, exact)
    query_places(whole_grid(checkpoint, options.resolution, WHOLE), queries)  # raises before any computation
    images = photographs() if images is None else images
    require_image_set(images)
    labels = labels_of(images) if labels is True else labels or Labels([], [])
    if labels.names:
        check_labels(*labels)
    resampled = _groups(images, groups)
    model = model_of(checkpoint, images, labels)
    specs = specs_of(plan, match)
    check_specs(model, specs)
    settings = ablation_settings(checkpoint, images, labels, resampled, queries, exact, options)
    result = run(specs, model, Store(partial, settings, fresh=fresh), (queries, exact, options))
    attrs = {**origin_of(checkpoint), "images": images.name, "settings": json.dumps(settings)}
    return _dataset(result, model, resampled, attrs | frame_attrs(model.modes))


def model_of(checkpoint: Checkpoint, images: ImageSet, labels: Labels) -> Model:
    """Decomposes a checkpoint, and collects what the ablations of a plan have in common."""
    modes = decompose(checkpoint)
    return Model(checkpoint, query_key(checkpoint), modes, measure(modes), images, labels)


def _groups(images: ImageSet, groups: Sequence[int] | None) -> Groups:
    """The groups of images that intervals resample.

    Raises:
      QkjaxError: the number of groups differs from the number of images.
    """
    if groups is None:
        return groups_of(images)
    if len(groups) != len(images):
        raise QkjaxError(f"groups has {len(groups)} numbers: expected one for each of the {len(images)} images")
    return Groups([int(group) for group in groups], "group")


def _dataset(result: Ablations, model: Model, groups: Groups, attrs: dict[str, str]) -> xr.Dataset:
    """Collects the effects of all ablations, and their doses in each measure."""
    original, index = result.arrays[0], result.arrays[0]["index"]
    names = model.images.names
    left_out = [(names[i], reason) for i, reason in json.loads(str(original["unreadable"]))]
    hidden = {"unreadable", "index", "pixels", *(name for name in original if name.startswith(SIZES))}
    nothing = np.zeros(np.shape(model.metrics.singular_value)[:2])
    shares = {"share": [nothing, *(edit.share for edit in result.edits)]}
    for name, sizes in result.sizes.items():
        changed = [changed_share(edit.kind, edit.weights, model.metrics.singular_value, sizes) for edit in result.edits]
        shares[f"{name}_share"] = [nothing, *changed]
    effects = [
        {name: x for name, x in arrays.items() if name not in hidden} | {name: x[i] for name, x in shares.items()}
        for i, arrays in enumerate(result.arrays)
    ]
    readable = Groups([groups.of_images[i] for i in index], groups.unit)
    return ablations_dataset(result.specs, effects, [names[i] for i in index], readable, left_out, attrs)


def ablation_settings(
    checkpoint: Checkpoint,
    images: ImageSet,
    labels: Labels,
    groups: Groups,
    queries: int,
    exact: bool,
    options: PassOptions,
) -> dict[str, str]:
    """The settings that all ablations share. The result of an ablation depends only on these and on its edit."""
    classes, resampled = (
        blake2b(json.dumps(x).encode(), digest_size=12).hexdigest() if x[0] else False for x in (labels, groups)
    )
    return settings_of(checkpoint, images, options, queries=queries, exact=exact, labels=classes, groups=resampled)
