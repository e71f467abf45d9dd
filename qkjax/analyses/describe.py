"""Makes tables and figures for the result of any analysis."""

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr

from qkjax import figures
from qkjax.analyses import analyze, compare, image, image_tables
from qkjax.analyses.ablate import describe as ablate
from qkjax.analyses.objects import describe as objects
from qkjax.analyses.outcome import Description
from qkjax.analyses.preference import describe as preference
from qkjax.analyses.tokens import describe as tokens
from qkjax.analyses.top_images.sheets import sheet_rows
from qkjax.analyses.top_images.tables import mode_table
from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Photograph
from qkjax.images.sets import ImageSet
from qkjax.interaction.mode_name import ModeName
from qkjax.weights.checkpoint import Checkpoint


def describe(
    dataset: xr.Dataset,
    checkpoint: Checkpoint | None = None,
    images: ImageSet | Photograph | str | Path | None = None,
    *,
    select: Sequence[str] = (),
) -> Description:
    """Makes tables and figures for the result of an analysis.

    The analysis is `analyze`, `compare`, `attribute_logits`, `top_images`, `attention_preference`, `same_object`,
    `token_statistics` or `ablate`.

    Args:
      dataset: the result of an analysis.
      checkpoint: the checkpoint of the analysis, for figures that show images.
      images: the images of the analysis, for figures that show images. For `attribute_logits`, pass the photograph; for
        all other analyses, pass the image set.
      select: for `top_images`, the modes on the sheet, such as "L8 H4 M2". For `attribute_logits`, the heads on the
        sheet, such as "L8 H4".

    Returns:
      A `Description`: `tables` is a dict from names to lists of rows, `figures` is a dict from names to functions that
      draw a figure, and `text` is the main table.

    Raises:
      QkjaxError: the dataset is not the result of an analysis, or a selected mode or head does not exist.

    Example:
      >>> import qkjax
      >>> result = qkjax.analyze(qkjax.load("dinov2-vits14-focus"))
      >>> sorted(qkjax.describe(result).figures)
      ['cosine_by_layer', 'cosine_histograms', 'head_map', 'spectra', 'symmetry_by_layer']
    """
    kinds: dict[str, Callable[[], Description]] = {
        "u": lambda: analyze.describe(dataset),
        "strength_ratio": lambda: compare.describe(dataset),
        "variance_share": lambda: _describe_photograph(dataset, checkpoint, images, select),
        "value": lambda: _describe_top_images(dataset, checkpoint, images, select),
        "mass": lambda: preference.describe(dataset, checkpoint, images),
        "same": lambda: objects.describe(dataset, dataset.attrs["model"]),
        "logit_parts": lambda: tokens.describe(dataset),
        "attention_js": lambda: ablate.describe(dataset),
    }
    for variable, compute in kinds.items():
        if variable in dataset:
            return compute()
    raise QkjaxError(
        f"the dataset has the variables {', '.join(map(str, dataset.data_vars))}: expected the result of an analysis, "
        "such as qkjax.analyze"
    )


def _describe_photograph(dataset: xr.Dataset, checkpoint, photograph, select: Sequence[str]) -> Description:
    rows = image_tables.layer_rows(dataset)
    tables = {"contributions": image_tables.mode_rows(dataset, "variance"), "heads": image_tables.head_rows(dataset)}
    if checkpoint is None or not select:
        return Description("", rows, tables, {})
    shape = tuple(dataset.sizes[name] for name in ("layer", "head", "mode"))
    heads = [ModeName.parse(f"{name} M0", shape)[:2] for name in select]

    def draw():
        pixels = image.visible_picture(checkpoint, photograph)
        maps = image.query_key_maps(checkpoint, photograph)
        sheet = [
            row for layer, head in heads for row in image_tables.contact_rows(dataset, maps, pixels, layer, [head])
        ]
        title = f"{dataset.attrs['model']}: modes with the largest share of the logits' variance"
        return figures.contact_sheet(title, pixels, sheet)

    return Description("", rows, tables, {"modes": draw})


def _describe_top_images(dataset: xr.Dataset, checkpoint, images, select: Sequence[str]) -> Description:
    names = [ModeName.parse(name, dataset.cosine.shape) for name in select]
    tables = {"modes": mode_table(dataset, names)}
    if checkpoint is None or images is None or not select:
        return Description("", tables["modes"], tables, {})
    title = f"{dataset.attrs['model']}: top images of each mode in {images.name}"

    def draw():
        return figures.top_images_sheet(title, sheet_rows(checkpoint, images, dataset, select))

    return Description("", tables["modes"], tables, {"modes": draw})
