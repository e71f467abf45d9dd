"""The command line: composes the rooms of the package, computes nothing itself."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from qkjax.errors import QkjaxError
from qkjax.train.config import TrainConfig

# Only light modules are imported above: `qkjax --help` must answer at once.


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
    from qkjax.analyze import Options, analyze_models

    if not models:
        raise QkjaxError("no model given; for example: qkjax analyze dinov2-vits14-focus")
    analyze_models(models, out, Options.checked(fold_scale, center, normalize), _said(grid=grid, heads=heads))


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
    from qkjax.analyze import Options
    from qkjax.compare import compare_models

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
    from qkjax.image import ImageOptions
    from qkjax.image import image as show

    options = ImageOptions(layer, head, top, contribution, stream, resolution)
    show(model, photo, out, options, _said(grid=grid, heads=heads))


def modes(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    images: Path | None = None,
    out: Path | None = None,
    score: tuple[str, ...] = ("product",),
    top: int = 8,
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
        from qkjax.hosts import join

        join()
    from qkjax.scan import ScanOptions
    from qkjax.top_images import Shown, top_images

    options = ScanOptions(score, top, stream, batch, resolution, dtype)
    shown = Shown(sheet_modes, layer, head, select)
    top_images(model, images, out, options, shown, _said(grid=grid, heads=heads))


def train(
    out: Annotated[Positional[Path], arg(metavar="FOLDER")],
    /,
    config: Annotated[TrainConfig, arg(name="")] = TrainConfig(),  # noqa: B008 (a frozen page of values)
) -> None:
    """Train a ViT whose query-key interaction is constrained; the folder then serves as a MODEL.

    The same command goes on with a run that was stopped, to the same bits.

    Args:
      out: folder of the run: config.json, metrics.jsonl, checkpoints, and at the end model.npz.
      config: the run.
    """
    from qkjax.train.run import train as run

    last = run(config, out)
    print(f"{out}: accuracy {last['accuracy']:.4f} on held-out images after {last['step']} steps")


def models(check: bool = False) -> None:
    """List the catalogue: name, size of the download, whether it is on disk, what it is.

    Args:
      check: ask every server whether it still has what the catalogue says; exit code 2 if not.
    """
    from qkjax.weights import catalogue

    if check:
        from qkjax.weights.fetch import check_urls

        gone = check_urls(catalogue.entries())
        print("\n".join(f"{name}: {problem}" for name, problem in gone))
        if gone:
            raise QkjaxError(f"{len(gone)} of {len(catalogue.entries())} entries have a problem, listed above")
        return
    print(f"checkpoints lie in {catalogue.folder()}")
    width = max(len(name) for name in catalogue.entries())
    for name, entry in catalogue.entries().items():
        size = f"{entry.bytes / 1e6:.0f} MB" if entry.bytes else ""
        state = "unsupported" if entry.unsupported else "on disk" if catalogue.path_of(name).exists() else "not fetched"
        print(f"{name:<{width}} {size:>8}  {state:<11}  {entry.objective:<22}  {entry.title}")


def fetch(names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME...")], /) -> None:
    """Download checkpoints of the catalogue.

    Args:
      names: names from `qkjax models`.
    """
    from qkjax.weights import catalogue
    from qkjax.weights.fetch import fetch as fetch_one

    if not names:
        raise QkjaxError("no name given; `qkjax models` lists them")
    for name in names:
        catalogue.entry(name)
    for name in names:
        print(fetch_one(name))


def export(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    path: Annotated[Positional[Path], arg(metavar="FILE.npz")],
    /,
    grid: tuple[int, int] | None = None,
    pool: Literal["tok", "gap", "map", "none", "0"] | None = None,
    heads: int | None = None,
) -> None:
    """Write a checkpoint as an npz that big_vision's vit.load reads.

    Args:
      model: a name from `qkjax models`, or a path.
      path: the npz file to write.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      pool: pooling, where it is not the one that the tree shows ("gap" stands for "none" and "0").
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.weights.export import export as export_checkpoint
    from qkjax.weights.load import load

    for note in export_checkpoint(load(model, **_said(grid=grid, pool=pool, heads=heads)), path):
        print(f"note: {note}", file=sys.stderr)
    print(path)


def _said(**settings) -> dict:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}


def main() -> None:
    """Entry point of the `qkjax` command: exit code 0, 2 for bad input, 130 when interrupted."""
    commands = {
        "analyze": analyze,
        "compare": compare,
        "image": image,
        "modes": modes,
        "train": train,
        "models": models,
        "fetch": fetch,
        "export": export,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="qkjax",
            description="Dissects the query-key interaction of vision transformers.",
            config=(FlagCreatePairsOff,),
        )
        sys.stdout.flush()
    except QkjaxError as error:
        print(f"qkjax: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one was enough
        print("qkjax: interrupted; what was finished is kept", file=sys.stderr, flush=True)
        os._exit(130)  # an orderly exit would pull Python away from under XLA's running threads, which crashes
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        _drop_output()
    except OSError as error:
        print(f"qkjax: error: {error}", file=sys.stderr)
        _drop_output()
        sys.exit(2)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print("qkjax: error: this does not fit in memory: give a smaller --resolution or --batch", file=sys.stderr)
        sys.exit(2)


def _is_out_of_memory(error: Exception) -> bool:
    """Of jax's errors by name, since jax is not imported where nothing is computed."""
    from_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "allocat", "YNNPACK")
    return isinstance(error, MemoryError) or (from_jax and any(sign in str(error) for sign in signs))


def _drop_output() -> None:
    """What is still to be written to standard output cannot be; without this Python would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
