"""`qkjax models`, `fetch`, `export`: checkpoints, to here and from here."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import EditKind, Pool, given_options
from qkjax.errors import QkjaxError


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
    edit: EditKind | None = None,
    select: str = "all",
    control: int | None = None,
    key_bias: bool = True,
    grid: tuple[int, int] | None = None,
    pool: Pool | None = None,
    heads: int | None = None,
) -> None:
    """Write a checkpoint as an npz that big_vision's vit.load reads; edited, if asked for.

    Args:
      model: a name from `qkjax models`, or a path.
      path: the npz file to write.
      edit: what to do to the modes selected: drop them, or all others of their heads (keep); flip their sign, rotate
        their key direction onto the query direction, equalize their strengths; or, of their heads, take the
        symmetric or antisymmetric part of M, or take out what the query bias makes of keys (unbias).
      select: the modes: terms such as "cosine>0.5 layers=0-3 heads=1,4 modes=0-9", all of which hold;
        "grouping=0.3", "contextual=0.3", "strongest=0.3" and "weakest=0.3" are the first modes by cosine or
        singular value that hold 0.3 of their head's squared strength.
      control: edit random modes as strong in their place, drawn by this seed.
      key_bias: the query bias makes some keys attractive to all queries; without it that is taken out of the edited
        heads.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      pool: pooling, where it is not the one that the tree shows ("gap" stands for "none" and "0").
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.weights.export import export as export_checkpoint
    from qkjax.weights.load import load

    checkpoint, notes = load(model, **given_options(grid=grid, pool=pool, heads=heads)), []
    if edit:
        from qkjax.analyses.edit import edit_with_notes

        checkpoint, notes = edit_with_notes(checkpoint, edit, select, key_bias=key_bias, control=control)
    for note in [*notes, *export_checkpoint(checkpoint, path)]:
        print(f"note: {note}", file=sys.stderr)
    print(path)
