"""`qkjax image`, `top-images`: what the modes of a model are in images."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qkjax.cli.options import Dtype, Stream, given_options


def image(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    photo: Annotated[Positional[str], arg(metavar="IMAGE")],
    /,
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    layer: Annotated[int | None, arg(metavar="N")] = None,
    head: Annotated[int | None, arg(metavar="N")] = None,
    top: Annotated[int, arg(metavar="N")] = 6,
    contribution: Literal["variance", "attention"] = "variance",
    stream: Stream = "norm",
    resolution: Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH")] = None,
    grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    heads: Annotated[int | None, arg(metavar="N")] = None,
    json: bool = False,
) -> None:
    """Show the modes that contribute most to an image's attention: sheets of maps, and tables.

    Args:
      model: a name from `qkjax models`, or a path.
      photo: a file, or the name of a photograph of scikit-image or scikit-learn, such as chelsea.
      out: folder for the results; by default results/MODEL/images/IMAGE.
      layer: this layer alone.
      head: this head alone.
      top: modes shown for each head.
      contribution: how modes are ranked: by their share of the variance over keys of the attention
        logits, with equal weights for all keys, or weighted by the attention.
      stream: what the maps show: the LayerNorm's output, on which the modes act, or the residual
        stream before it, as in the authors' code.
      resolution: height and width in pixels; by default the model's own.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file without config.json whose width does not tell.
      json: print the table and the findings as JSON.
    """
    from qkjax.analyses.image_sheets import ImageSheets, write_image
    from qkjax.analyses.outcome import print_outcome
    from qkjax.weights.load import load

    checkpoint = load(model, **given_options(grid=grid, heads=heads))
    shown = ImageSheets(layer, head, top, contribution, stream, resolution)
    name, written = write_image(checkpoint, photo, out, shown)
    print_outcome(f"{checkpoint.name}, {name}", written, as_json=json, next_step=f"qkjax top-images {model}")


def top_images(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    images: Annotated[Path | None, arg(metavar="PATH")] = None,
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    score: Annotated[tuple[str, ...], arg(metavar="SCORE...")] = ("product",),
    top: Annotated[int, arg(metavar="N")] = 9,
    stream: Stream = "norm",
    batch: Annotated[int | None, arg(metavar="N")] = None,
    resolution: Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH")] = None,
    dtype: Dtype = "float32",
    sheet_modes: Annotated[int, arg(metavar="N")] = 5,
    layer: Annotated[int | None, arg(metavar="N")] = None,
    head: Annotated[int | None, arg(metavar="N")] = None,
    select: Annotated[tuple[str, ...], arg(metavar="MODE...")] = (),
    distributed: bool = False,
    grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    heads: Annotated[int | None, arg(metavar="N")] = None,
    json: bool = False,
) -> None:
    """Find the images that excite each mode most, in one pass: top_images.nc, and sheets of them.

    An interrupted pass resumes when the command is repeated. Images that cannot be read are listed in
    unreadable.csv.

    Args:
      model: a name from `qkjax models`, or a path.
      images: a folder (ImageNet's layout, flat or nested), a .zip, a .tar (webdataset) or a folder of
        those; by default the photographs that come with scikit-image and scikit-learn.
      out: folder for the results; by default results/MODEL/top_images.
      score: one or more of product (the maximum of the query map times that of the key map; the paper's),
        query_max, key_max, query_top5, key_top5 (mean of the five largest), query_mean, key_mean.
        Sheets show the first.
      top: images kept for each mode, sign and score.
      stream: what is projected: the LayerNorm's output, on which the modes act, or the residual stream
        before it, as in the authors' code.
      batch: images per batch; by default 8 on a CPU, 64 per device elsewhere.
      resolution: height and width in pixels; by default the model's own.
      dtype: of the forward pass.
      sheet_modes: modes on a sheet, strongest first.
      layer: sheets of this layer alone.
      head: sheets of this head alone.
      select: instead of sheets one page of these modes, such as "L8 H7 M2"; "L8 H7 M2-" is its other sign.
      distributed: share the images among several processes that run this command (jax.distributed).
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file without config.json whose width does not tell.
      json: print the findings as JSON.
    """
    if distributed:
        from qkjax.runtime.hosts import join

        join()
    from qkjax.analyses.outcome import print_notes, print_outcome
    from qkjax.analyses.top_images.pages import (
        ScanOptions,
        SheetOptions,
        draw_pages,
        earlier_folder,
        pages_of,
        write_top_images,
    )
    from qkjax.images.default_set import photographs
    from qkjax.images.sources import open_images
    from qkjax.passes.inputs import for_photographs
    from qkjax.passes.options import PassOptions
    from qkjax.weights.load import load, origin

    settings = given_options(grid=grid, heads=heads)
    checkpoint = for_photographs(load(model, **settings))
    config = checkpoint.config
    shape = config.depth, config.heads, min(config.width, config.head_dim)
    pages = pages_of(SheetOptions(sheet_modes, layer, head, select), shape)
    scan = ScanOptions(top, score, stream, PassOptions(batch, resolution, dtype))
    pictures = open_images(images) if images else photographs()
    print_notes(pictures)
    folder = out or earlier_folder(Path("results") / checkpoint.name)
    written = write_top_images(checkpoint, pictures, scan, folder, origin(model, settings))
    draw_pages(checkpoint, pictures, written.dataset, pages, folder)
    print_outcome(checkpoint.name, written, as_json=json, next_step=f"qkjax report {model}")
