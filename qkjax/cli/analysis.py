"""`qkjax analyze`, `compare`, `image`, `modes`: what a model's interactions are, and what they do to images."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qkjax.cli.said import said
from qkjax.errors import QkjaxError


def analyze(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Path | None = None,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Decompose every head's query-key interaction: table, modes.nc, layers.csv, figures.

    With y = g * x + b what attention sees (x the normalised token), M = Wq Wk^T acts on y.

    Args:
      models: names from `qkjax models`, or paths to npz files or tensorstore folders
        ("siglip.npz:img" for the image tower of a file with two).
      out: folder for the results; by default results/MODEL. With several models each has a
        folder of its own in it (by default results/), and the comparison lies beside them.
      fold_scale: fold the LayerNorm scale: diag(g) M diag(g), which acts on x.
      center: also take out the mean direction, which LayerNorm removes: C diag(g) M diag(g) C,
        C = I - 11^T / D. Needs --fold-scale.
      normalize: divide M by sqrt(head_dim): strengths in units of the attention logit.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.analyses.analyze import Options, analyze_models

    if not models:
        raise QkjaxError("no model given; for example: qkjax analyze dinov2-vits14-focus")
    analyze_models(models, out, Options.checked(fold_scale, center, normalize), said(grid=grid, heads=heads))


def compare(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Path = Path("results/compare"),
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
) -> None:
    """Overlay models by training objective; say how those of one architecture differ.

    Every model with as many layers and heads, as wide as the first, is compared with it mode by mode.

    Args:
      models: as for analyze; two or more.
      out: folder for compare.csv, the figures, and a folder for each comparison by modes.
      fold_scale: as for analyze.
      center: as for analyze.
      normalize: as for analyze.
    """
    from qkjax.analyses.analyze import Options
    from qkjax.analyses.compare import compare_models

    if len(models) < 2:
        raise QkjaxError("compare wants two models or more; for example: qkjax compare original.npz finetuned.npz")
    compare_models(models, out, Options.checked(fold_scale, center, normalize), {})


def image(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    photo: Annotated[Positional[str], arg(metavar="IMAGE")],
    /,
    out: Path | None = None,
    layer: int | None = None,
    head: int | None = None,
    top: int = 6,
    contribution: Literal["variance", "attention"] = "variance",
    stream: Literal["norm", "residual"] = "norm",
    resolution: tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Show the modes that contribute most to an image's attention: sheets of maps, and tables.

    Args:
      model: a name from `qkjax models`, or a path.
      photo: a file, or the name of a photograph of scikit-image or scikit-learn, such as chelsea.
      out: folder for the results; by default results/MODEL/images/IMAGE.
      layer: this layer alone.
      head: this head alone.
      top: modes shown of each head.
      contribution: how modes are ranked, by their share of the variance over keys of the attention
        logits: with all keys alike, or weighted by the attention.
      stream: what the maps show: the LayerNorm's output, on which the modes act, or the residual
        stream before it, as in the authors' code.
      resolution: height and width in pixels, if not the model's own.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.analyses.image import ImageOptions
    from qkjax.analyses.image import image as show

    options = ImageOptions(layer, head, top, contribution, stream, resolution)
    show(model, photo, out, options, said(grid=grid, heads=heads))


def modes(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    images: Path | None = None,
    out: Path | None = None,
    score: tuple[str, ...] = ("product",),
    top: int = 9,
    stream: Literal["norm", "residual"] = "norm",
    batch: int | None = None,
    resolution: tuple[int, int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    sheet_modes: int = 5,
    layer: int | None = None,
    head: int | None = None,
    select: tuple[str, ...] = (),
    distributed: bool = False,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Find the images that excite each mode most, in one pass: top_images.nc, and sheets of them.

    The pass can be interrupted: the same command goes on with it. Images that cannot be read are
    listed in unreadable.csv.

    Args:
      model: a name from `qkjax models`, or a path.
      images: a folder (ImageNet's layout, flat or nested), a .zip, a .tar (webdataset) or a folder of
        those; by default the photographs that come with scikit-image and scikit-learn.
      out: folder for the results; by default results/MODEL/modes.
      score: one or more of product (of the largest value of query map and key map; the paper's),
        query_max, key_max, query_top5, key_top5 (mean of the five largest), query_mean, key_mean.
        Sheets show the first.
      top: images kept for each mode, sign and score.
      stream: what is projected: the LayerNorm's output, on which the modes act, or the residual stream
        before it, as in the authors' code.
      batch: images at once; by default 8 on a CPU, 64 a device elsewhere.
      resolution: height and width in pixels, if not the model's own.
      dtype: of the forward pass.
      sheet_modes: modes on a sheet, strongest first.
      layer: sheets of this layer alone.
      head: sheets of this head alone.
      select: instead of sheets one page of these modes, such as "L8 H7 M2"; "L8 H7 M2-" is its other sign.
      distributed: share the images among several processes that run this command (jax.distributed).
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    if distributed:
        from qkjax.runtime.hosts import join

        join()
    from qkjax.analyses.top_images.job import Shown, top_images
    from qkjax.analyses.top_images.scan import ScanOptions

    options = ScanOptions(score, top, stream, batch, resolution, dtype)
    shown = Shown(sheet_modes, layer, head, select)
    top_images(model, images, out, options, shown, said(grid=grid, heads=heads))
