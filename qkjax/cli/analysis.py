"""`qkjax analyze`, `compare`, `image`, `top-images`: what a model's interactions are, and what they do to images."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qkjax.cli.options import Dtype, Stream, given_options
from qkjax.errors import QkjaxError


def analyze(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    grid: Annotated[tuple[int, int] | None, arg(metavar="ROWS COLUMNS")] = None,
    heads: Annotated[int | None, arg(metavar="N")] = None,
    json: bool = False,
) -> None:
    """Decompose every head's query-key interaction: table, modes.nc, layers.csv, figures.

    With y = g * x + b the input of attention (x the normalised token), M = Wq Wk^T acts on y.

    Args:
      models: names from `qkjax models`, or paths to npz files or tensorstore folders
        ("siglip.npz:img" for the image tower of a file with two).
      out: folder for the results; by default results/MODEL. Several models get a folder each in it
        (by default in results/), and the comparison is written beside them.
      fold_scale: fold the LayerNorm scale: diag(g) M diag(g), which acts on x.
      center: also remove the mean direction, which LayerNorm removes: C diag(g) M diag(g) C,
        C = I - 11^T / D. Needs --fold-scale.
      normalize: divide M by sqrt(head_dim): strengths in units of the attention logit.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file without config.json whose width does not tell.
      json: print the table and the findings as JSON.
    """
    from qkjax import figures
    from qkjax.analyses.analyze import analyze as compute
    from qkjax.analyses.analyze import describe, overlay
    from qkjax.analyses.decomposition import check_frame
    from qkjax.analyses.outcome import outcome, print_json, print_outcome
    from qkjax.analyses.targets import load_models

    if not models:
        raise QkjaxError("no model given; for example: qkjax analyze dinov2-vits14-focus")
    check_frame(fold_scale, center)
    loaded = load_models(models, given_options(grid=grid, heads=heads))
    _refuse_file(out)
    base, results = out or Path("results"), {}
    frame = {"fold_scale": fold_scale, "center": center, "normalize": normalize}
    for name, (checkpoint, origin) in loaded.items():
        folder = base if len(loaded) == 1 and out else base / name
        shape = f"{checkpoint.config.depth} x {checkpoint.config.heads}"
        print(f"{name}: decomposing {shape} heads", file=sys.stderr)
        written = outcome(folder, "modes", None, lambda _, c=checkpoint: compute(c, **frame), describe, attrs=origin)
        results[name] = written
        if not json:
            print_outcome(name, written, next_step=f"qkjax top-images {origin['checkpoint']}")
    if json:
        print_json(list(results.items()))
    if len(results) > 1:
        datasets = {name: written.dataset for name, written in results.items()}
        for path in figures.save(overlay(datasets), base / "cosine_by_layer"):
            print(f"wrote {path}", file=sys.stderr)


def compare(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results/compare"),
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    json: bool = False,
) -> None:
    """Overlay models by training objective; measure how those of one architecture differ.

    Every model with the layers, heads and width of the first one is compared with it mode by mode.

    Args:
      models: as for analyze; at least two.
      out: folder for compare.csv, the figures, and a folder for each comparison by modes.
      fold_scale: as for analyze.
      center: as for analyze.
      normalize: as for analyze.
      json: print the tables and the findings as JSON.
    """
    from qkjax.analyses import compare as by_modes
    from qkjax.analyses.analyze import analyze as compute
    from qkjax.analyses.decomposition import check_frame
    from qkjax.analyses.outcome import Written, outcome, print_json, print_outcome, write_description
    from qkjax.analyses.targets import load_models
    from qkjax.runtime.files import make_folder

    if len(models) < 2:
        raise QkjaxError("compare needs at least two models; for example: qkjax compare original.npz finetuned.npz")
    check_frame(fold_scale, center)
    loaded = {name: checkpoint for name, (checkpoint, _) in load_models(models, {}).items()}
    objectives = {name: by_modes.objective_of(name) for name in loaded}
    frame = {"fold_scale": fold_scale, "center": center, "normalize": normalize}
    datasets = {}
    for name, checkpoint in loaded.items():
        print(f"{name}: decomposing {checkpoint.config.depth} x {checkpoint.config.heads} heads", file=sys.stderr)
        datasets[name] = compute(checkpoint, **frame)
    curves = by_modes.describe_curves(datasets, objectives)
    make_folder(out)
    write_description(curves, out)
    (first, original), *others = loaded.items()
    overview = by_modes.curves_dataset(datasets)
    results = [("models", Written(overview, curves, out))]
    for name, other in others:
        if datasets[name]["u"].shape == datasets[first]["u"].shape:
            folder = out / f"{name}-against-{first}"
            both = original, other
            written = outcome(
                folder, "difference", None, lambda _, both=both: by_modes.compare(*both, **frame), by_modes.describe
            )
            results.append((f"{name} against {first}", written))
    if json:
        print_json(results)
        return
    for title, written in results:
        print_outcome(title, written, next_step=f"qkjax image {models[0]} chelsea" * (title == results[-1][0]))


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
    from qkjax.analyses.outcome import print_outcome
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
    folder = out or earlier_folder(Path("results") / checkpoint.name)
    written = write_top_images(checkpoint, pictures, scan, folder, origin(model, settings))
    draw_pages(checkpoint, pictures, written.dataset, pages, folder)
    print_outcome(checkpoint.name, written, as_json=json, next_step=f"qkjax report {model}")


def _refuse_file(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise QkjaxError(f"{out} is a file, and results need a folder: give another --out")
