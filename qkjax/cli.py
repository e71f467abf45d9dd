"""The command line: composes the rooms of the package, computes nothing itself."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from qkjax.errors import QkjaxError

# Only light modules are imported above: `qkjax --help` must answer at once.


def analyze(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    out: Path | None = None,
    fold_scale: bool = False,
    center: bool = False,
    normalize: bool = False,
    grid: tuple[int, int] | None = None,
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
    """
    from qkjax.analyze import Options, analyze_models

    if not models:
        raise QkjaxError("no model given; for example: qkjax analyze dinov2-vits14-focus")
    if center and not fold_scale:
        raise QkjaxError("--center takes out a direction of x, on which M acts only with --fold-scale: give both")
    analyze_models(models, out, Options(fold_scale, center, normalize), {"grid": grid} if grid else {})


def models() -> None:
    """List the catalogue: name, what it is, size of the download, whether it is on disk."""
    from qkjax.weights import catalogue

    print(f"checkpoints lie in {catalogue.folder()}")
    for name, entry in catalogue.entries().items():
        state = "on disk" if catalogue.path_of(name).exists() else "not fetched"
        print(f"{name:<24} {entry.bytes / 1e6:7.0f} MB  {state:<11}  {entry.title}")


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
) -> None:
    """Write a checkpoint as an npz that big_vision's vit.load reads.

    Args:
      model: a name from `qkjax models`, or a path.
      path: the npz file to write.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      pool: pooling, where it is not the one that the tree shows ("gap" stands for "none" and "0").
    """
    from qkjax.weights.export import export as export_checkpoint
    from qkjax.weights.load import load

    overrides = {name: value for name, value in (("grid", grid), ("pool", pool)) if value is not None}
    for note in export_checkpoint(load(model, **overrides), path):
        print(f"note: {note}", file=sys.stderr)
    print(path)


def main() -> None:
    """Entry point of the `qkjax` command: exit code 0, 2 for bad input, 130 when interrupted."""
    commands = {"analyze": analyze, "models": models, "fetch": fetch, "export": export}
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
        print("qkjax: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
