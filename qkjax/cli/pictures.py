"""The commands `qkjax image` and `qkjax top-images`, which show the modes of a model in images."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qkjax.cli.options import Dtype, Shard, Stream, given_options, join_hosts, quoted, shard_of


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
    """Find the modes that contribute most to attention in an image, and write tables and sheets of query and key maps.

    Args:
      model: name of a model listed by `qkjax models`, or path of a checkpoint.
      photo: image file, or name of a photograph that comes with scikit-image or scikit-learn, such as chelsea.
      out: folder for the results; by default results/MODEL/images/IMAGE.
      layer: show only this layer.
      head: show only this head.
      top: number of modes per head.
      contribution: how keys are weighted when modes are ranked. Modes are ranked by their share of the variance of the
        attention logits over keys. With variance, all keys have equal weights; with attention, each key is weighted by
        the attention that it receives.
      stream: tokens to project onto the modes: norm (the output of the LayerNorm before attention, on which the modes
        act) or residual (the residual stream before this LayerNorm, as in the authors' code).
      resolution: height and width of the image in pixels; by default the model's own resolution.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the table and the findings as JSON instead of text.
    """
    from qkjax.analyses.image_sheets import ImageSheets, write_image
    from qkjax.analyses.outcome import print_outcome
    from qkjax.runtime.folders import check_folder
    from qkjax.weights.load import load

    check_folder(out or Path("results"))
    checkpoint = load(model, **given_options(grid=grid, heads=heads))
    sheets = ImageSheets(layer, head, top, contribution, stream, resolution)
    name, written = write_image(checkpoint, photo, out, sheets)
    print_outcome(f"{checkpoint.name}, {name}", written, as_json=json, next_step=f"qkjax top-images {quoted(model)}")


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
    fresh: bool = False,
    distributed: bool = False,
    shard: Shard = None,
    grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    heads: Annotated[int | None, arg(metavar="N")] = None,
    json: bool = False,
) -> None:
    """Find the images that excite each mode most, and write top_images.nc and sheets of these images.

    Run the same command again to resume after an interruption. Images that cannot be read are listed in
    unreadable.csv.

    Args:
      model: name of a model listed by `qkjax models`, or path of a checkpoint.
      images: image set, as a .zip archive, a .tar archive (webdataset), a folder of images or archives, or the URL of
        a folder on an object store (s3://...). Images may be flat, nested, or in ImageNet's layout. The default is the
        photographs that come with scikit-image and scikit-learn.
      out: folder for the results; by default results/MODEL/top_images.
      score: one or more scores by which to rank images; the sheets use the first score. The score product is the
        maximum of the query map multiplied by the maximum of the key map, as in the paper. For the query map, query_max
        is the maximum, query_top5 the mean of the five largest values, and query_mean the mean of all values. For the
        key map, key_max, key_top5 and key_mean are the same statistics.
      top: number of images per mode, sign and score.
      stream: tokens to project onto the modes: norm (the output of the LayerNorm before attention, on which the modes
        act) or residual (the residual stream before this LayerNorm, as in the authors' code).
      batch: number of images per batch; by default 8 on a CPU, and 64 per device on accelerators.
      resolution: height and width of the images in pixels; by default the model's own resolution.
      dtype: floating-point format of the forward pass.
      sheet_modes: number of modes on a sheet, strongest first.
      layer: draw only the sheets of this layer.
      head: draw only the sheets of this head.
      select: modes to draw on one page instead of the sheets, such as "L8 H7 M2"; for the opposite sign of the mode,
        append a minus sign, as in "L8 H7 M2-".
      fresh: discard any earlier result and the progress of any interrupted run, and start again.
      distributed: divide the images among several processes, each of which runs this same command (jax.distributed).
      shard: compute only share I of N shares, written I/N (0/8 to 7/8 for 8 shares), independently of the other shares.
        Run the same command, with the same output folder, for each share. The last share to finish writes the result.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the findings as JSON instead of text.
    """
    join_hosts(distributed)
    from qkjax.analyses.decomposition import modes_per_head
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
    from qkjax.runtime.folders import check_folder
    from qkjax.weights.load import load, origin

    settings = given_options(grid=grid, heads=heads)
    check_folder(out or Path("results"))
    checkpoint = for_photographs(load(model, **settings))
    config = checkpoint.config
    shape = config.depth, config.heads, modes_per_head(checkpoint)
    pages = pages_of(SheetOptions(sheet_modes, layer, head, select), shape)
    scan = ScanOptions(top, score, stream, PassOptions(batch, resolution, dtype, shard_of(shard)))
    pictures = open_images(images) if images else photographs()
    print_notes(pictures)
    folder = out or earlier_folder(Path("results") / checkpoint.name)
    check_folder(folder)
    check_folder(folder / "sheets")
    written = write_top_images(checkpoint, pictures, scan, folder, origin(model, settings), fresh=fresh)
    draw_pages(checkpoint, pictures, written.dataset, pages, folder)
    print_outcome(checkpoint.name, written, as_json=json, next_step=f"qkjax report {quoted(model)}")
