"""Writes the result of `ablate` to a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from qkjax.analyses.ablate.ablator import WHOLE
from qkjax.analyses.ablate.compute import ablate, ablation_settings, model_of
from qkjax.analyses.ablate.describe import describe
from qkjax.analyses.ablate.plan import AblationSpec
from qkjax.analyses.ablate.readout import Labels, labels_of
from qkjax.analyses.ablate.run import check_specs
from qkjax.analyses.outcome import Written, outcome, print_notes, report_unreadable
from qkjax.errors import QkjaxError
from qkjax.images.default_set import photographs
from qkjax.images.labels import by_folder, groups_of
from qkjax.images.sets import ImageSet
from qkjax.images.sources import open_images
from qkjax.passes.inputs import for_photographs, whole_grid
from qkjax.passes.options import PassOptions
from qkjax.vit.patches import query_places
from qkjax.weights.checkpoint import Checkpoint


class AblationArguments(NamedTuple):
    """The arguments of an ablation run, except for checkpoint and plan.

    Attributes:
      path: a folder or archive of images; None for the default photographs.
      limit: number of evenly spaced images to use from the set; None for all images.
      labels: whether to measure accuracy; the class of an image is the name of its folder.
      queries, exact, options: see the arguments of `ablate`.
    """

    path: Path | None = None
    limit: int | None = None
    labels: bool = False
    queries: int = 16
    exact: bool = False
    options: PassOptions = PassOptions()


def write_ablations(
    checkpoint: Checkpoint,
    specs: Sequence[AblationSpec],
    arguments: AblationArguments,
    folder: Path,
    attrs: Mapping[str, str],
    *,
    fresh: bool = False,
) -> Written:
    """Runs `ablate`, writes the result to a folder, and saves finished ablations in the subfolder `done`.

    Returns:
      The result, on every host.

    Raises:
      QkjaxError: the input is invalid, an earlier result has different settings, or a file cannot be written.
    """
    _, _, _, queries, exact, options = arguments
    images, labels = images_and_labels(arguments)
    checkpoint = for_photographs(checkpoint)
    query_places(whole_grid(checkpoint, options.resolution, WHOLE), queries)
    check_specs(model_of(checkpoint, images, labels), specs)  # raises before the folder is created
    choices = {"queries": queries, "exact": exact, "options": options}

    def compute(_: Path) -> xr.Dataset:
        own = {**choices, "fresh": fresh and not options.shard}
        return ablate(checkpoint, specs, images, labels=labels, **own, partial=folder / "done")

    written = outcome(
        folder,
        "ablations",
        ablation_settings(checkpoint, images, labels, groups_of(images), **choices),
        compute,
        describe,
        attrs=attrs,
        fresh=fresh,
        shard=options.shard,
        recompute=True,  # the plan may have been extended; finished ablations are read from `done`
    )
    report_unreadable(written.dataset, folder)
    return written


def images_and_labels(arguments: AblationArguments) -> tuple[ImageSet, Labels]:
    """Opens the images, and determines their classes if accuracy is requested.

    Raises:
      QkjaxError: there is no image, there are fewer than two classes, or `limit` is below 1.
    """
    path, limit, with_labels, *_ = arguments
    images = open_images(path) if path else photographs()
    print_notes(images)
    labels = Labels([], [])
    if with_labels:
        labels = Labels(*by_folder(path, images)) if path else labels_of(images)
    if limit is None or limit >= len(images):
        return images, labels
    if limit < 1:
        raise QkjaxError(f"limit={limit}: expected a whole number of at least 1")
    subset, indices = images.spread(limit)
    return subset, Labels([labels.classes_of_images[i] for i in indices] if labels.names else [], labels.names)
