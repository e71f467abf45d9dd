"""The commands `qkjax models`, `qkjax fetch` and `qkjax export`: the catalogue, downloads, and checkpoint export."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import EditKind, KeyBias, Pool, given_options, quoted
from qkjax.errors import QkjaxError

if TYPE_CHECKING:
    from qkjax.weights.catalogue import Entry

NARROWEST_TITLE = 30
"""Smallest number of terminal columns for a title; if fewer columns are left, titles are not printed."""


def models(
    pattern: Annotated[Positional[str], arg(metavar="[FILTER]")] = "",
    /,
    family: Annotated[str | None, arg(metavar="FAMILY")] = None,
    objective: Annotated[str | None, arg(metavar="OBJECTIVE")] = None,
    json: bool = False,
    check: bool = False,
) -> None:
    """List the models of the catalogue: name, download size, whether the model is on disk, and training objective.

    If the terminal is wide enough, the list also shows titles. For example: qkjax models "siglip*" --objective
    contrastive

    Args:
      pattern: text or glob; list only models whose name, alias, Hugging Face id or title contains the text or matches
        the glob. Case is ignored.
      family: list only models of this family, such as DINOv2.
      objective: list only models with this training objective, such as contrastive.
      json: print a JSON array with one object per model.
      check: check that all files are still on the servers; the exit code is 2 if any file is missing.
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
        raise QkjaxError(f"{len(problems)} of {len(entries)} models have a problem; see the list above")


def _state(entry: "Entry") -> str:
    from qkjax.weights import catalogue

    if entry.unsupported:
        return "unsupported"
    return "on disk" if catalogue.path_of(entry.name).exists() else "not fetched"


def _as_json(entries: "dict[str, Entry]") -> str:
    """A JSON array with one object per model; `bytes` and `resolution` are null if unknown."""
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
    """The lines of the printed list of models.

    If `columns` leaves space for titles, each line ends with the title, cut off at `columns`. Otherwise the lines have
    no titles and are at most 80 characters wide.
    """
    width = max(len(name) for name in entries)
    lines = []
    for entry in entries.values():
        size = f"{entry.bytes / 1e6:.0f} MB" if entry.bytes else ""
        line = f"{entry.name:<{width}} {size:>7} {_state(entry):<11} {entry.objective}"
        room = columns - width - 45
        lines.append(f"{line:<{width + 43}}  {entry.title[:room]}" if room >= NARROWEST_TITLE else line)
    return lines


def fetch(names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME...")], /) -> None:
    """Download models of the catalogue, and print the paths of the files. An interrupted download resumes.

    Args:
      names: names of models listed by `qkjax models`, or ids of Hugging Face repositories.
    """
    from qkjax.weights import catalogue
    from qkjax.weights.download.fetch import fetch as fetch_one

    if not names:
        raise QkjaxError("no name given: pass one or more names listed by `qkjax models`")
    for name in names:
        catalogue.entry(name)
    for name in names:
        print(fetch_one(name))
    print(f"next: qkjax analyze {quoted(names[0])}", file=sys.stderr)


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
    """Write a checkpoint as an npz file that vit.load of big_vision reads; optionally edit modes first.

    Args:
      model: name of a model listed by `qkjax models`, or path of a checkpoint.
      path: npz file to write.
      edit: edit to apply to the selected modes. drop removes the selected modes. keep removes all modes that are not
        selected; the terms layers= and heads= limit keep to some heads. flip changes the sign of the selected modes.
        rotate moves the key directions of the selected modes onto their query directions. equalize makes the strengths
        of the selected modes equal. symmetric, antisymmetric and unbias edit every head that has a selected mode, as a
        whole. symmetric and antisymmetric replace the head's M = Wq Wk^T by its symmetric or antisymmetric part. unbias
        removes the key bias term, which is the part of the attention logits that depends on the query bias and the key.
      select: selection of modes, as terms separated by spaces, such as "cosine>0.5 layers=0-3 heads=1,4 modes=0-9". A
        mode is selected if it satisfies all terms. The term "grouping=0.3" selects, in each head, the modes with the
        highest cosines until they have 0.3 of the squared strength of the head. "contextual=0.3" selects modes with the
        lowest cosines, "strongest=0.3" modes with the largest singular values, and "weakest=0.3" modes with the
        smallest singular values.
      control: random seed of a control. A control does not edit the selected modes, but random modes, with the same
        squared norm of the change.
      key_bias: also remove the key bias term of the edited heads. This term is the part of the attention logits that
        depends on the query bias and the key; it attracts all queries to some keys.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      pool: pooling of the model; needed only if it differs from the pooling that qkjax infers from the parameters.
        (qkjax also infers "gap" for models whose pooling is "none" or "0".)
      heads: number of attention heads; needed only for a torch file without config.json.
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
    print(f"next: qkjax analyze {quoted(str(path))}", file=sys.stderr)
