"""`qkjax models`, `fetch`, `export`: the catalogue, downloads, and checkpoints for big_vision."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import EditKind, KeyBias, Pool, given_options
from qkjax.errors import QkjaxError

if TYPE_CHECKING:
    from qkjax.weights.catalogue import Entry

NARROWEST_TITLE = 30
"""Titles are printed only if at least this number of columns is left for them."""


def models(
    pattern: Annotated[Positional[str], arg(metavar="[FILTER]")] = "",
    /,
    family: Annotated[str | None, arg(metavar="FAMILY")] = None,
    objective: Annotated[str | None, arg(metavar="OBJECTIVE")] = None,
    json: bool = False,
    check: bool = False,
) -> None:
    """List the models of the catalogue: name, download size, state on disk, training objective.

    A wide terminal also shows titles. For example: qkjax models "siglip*" --objective contrastive

    Args:
      pattern: list only models with this text in their name, alias, Hugging Face id or title, or that match this
        glob. Case is ignored.
      family: list only this family, such as DINOv2.
      objective: list only this training objective, such as contrastive.
      json: print a JSON array with one object per model.
      check: check that every server still has the files; the exit code is 2 if one does not.
    """
    from qkjax.weights import catalogue

    entries = catalogue.search(pattern, family, objective)
    if check:
        _check(entries)
    elif json:
        print(_as_json(entries))
    else:
        print(f"folder of checkpoints: {catalogue.folder()}")
        print("\n".join(_table(entries, shutil.get_terminal_size().columns)))


def _check(entries: "dict[str, Entry]") -> None:
    from qkjax.weights.download.check import check_urls

    problems = check_urls(entries)
    print("\n".join(f"{name}: {problem}" for name, problem in problems))
    if problems:
        raise QkjaxError(f"{len(problems)} of {len(entries)} entries have a problem, listed above")


def _state(entry: "Entry") -> str:
    from qkjax.weights import catalogue

    if entry.unsupported:
        return "unsupported"
    return "on disk" if catalogue.path_of(entry.name).exists() else "not fetched"


def _as_json(entries: "dict[str, Entry]") -> str:
    """One object per model; `bytes` and `resolution` are null if unknown."""
    rows = [
        {
            "name": entry.name,
            "title": entry.title,
            "family": entry.family,
            "objective": entry.objective,
            "resolution": entry.resolution or None,
            "bytes": entry.bytes or None,
            "state": _state(entry),
            "licence": entry.licence,
            "aliases": list(entry.aliases),
            "unsupported": entry.unsupported,
        }
        for entry in entries.values()
    ]
    return json.dumps(rows, indent=1)


def _table(entries: "dict[str, Entry]", columns: int) -> list[str]:
    """Lines of at most 80 columns without titles, or of `columns` with as much of each title as fits."""
    width = max(len(name) for name in entries)
    lines = []
    for entry in entries.values():
        size = f"{entry.bytes / 1e6:.0f} MB" if entry.bytes else ""
        line = f"{entry.name:<{width}} {size:>7} {_state(entry):<11} {entry.objective}"
        room = columns - width - 45
        lines.append(f"{line:<{width + 43}}  {entry.title[:room]}" if room >= NARROWEST_TITLE else line)
    return lines


def fetch(names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME...")], /) -> None:
    """Download models of the catalogue, and print their paths. Interrupted downloads resume.

    Args:
      names: names from `qkjax models`, or ids of Hugging Face repositories.
    """
    from qkjax.weights import catalogue
    from qkjax.weights.download.fetch import fetch as fetch_one

    if not names:
        raise QkjaxError("no name given: give one or more names from `qkjax models`")
    for name in names:
        catalogue.entry(name)
    for name in names:
        print(fetch_one(name))
    print(f"next: qkjax analyze {names[0]}", file=sys.stderr)


def export(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    path: Annotated[Positional[Path], arg(metavar="FILE.npz")],
    /,
    edit: EditKind | None = None,
    select: str = "all",
    control: int | None = None,
    key_bias: KeyBias = True,
    grid: tuple[int, int] | None = None,
    pool: Pool | None = None,
    heads: int | None = None,
) -> None:
    """Write a checkpoint as an npz that big_vision's vit.load reads; optionally edit its modes first.

    Args:
      model: a name from `qkjax models`, or a path.
      path: the npz file to write.
      edit: the edit of the selected modes. drop removes them; keep removes all other modes of their heads; flip
        changes their sign; rotate moves their key direction onto the query direction; equalize makes their strengths
        equal. The other edits act on whole heads with a selected mode: symmetric and antisymmetric replace M by this
        part of it; unbias removes the part of the logits that depends on the query bias and the key.
      select: terms that a mode must all satisfy, such as "cosine>0.5 layers=0-3 heads=1,4 modes=0-9". The terms
        "grouping=0.3", "contextual=0.3", "strongest=0.3" and "weakest=0.3" select the first modes by cosine or
        singular value that have 0.3 of the squared strength of their head.
      control: edit strength-matched random modes instead, drawn with this seed.
      key_bias: remove the part of the edited heads' logits that depends on the query bias and the key; it attracts all
        queries to some keys.
      grid: number of rows and of columns in the grid of the position embedding, if it is not square.
      pool: pooling, if it is not the one inferred from the parameters ("gap" is inferred for "none" and "0", too).
      heads: number of attention heads, for a torch file without config.json.
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
    print(f"next: qkjax analyze {path}", file=sys.stderr)
