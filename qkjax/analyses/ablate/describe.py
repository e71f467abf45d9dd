"""Makes the table and the figures that show the results of ablations."""

import textwrap
from collections.abc import Sequence

import xarray as xr

from qkjax import figures
from qkjax.analyses.ablate.tables import ablation_table
from qkjax.analyses.outcome import Description
from qkjax.results.labels import in_words, interval_over
from qkjax.results.rows import Row, format_rows

COLUMNS = {
    "modes": "modes", "seeds": "seeds", "strength_share": "strength", "logits_share": "logits", "kept": "kept",
    "representation": "repr", "attention": "attn", "preference": "pref", "logits": "KL", "head": "head",
    "probe": "probe", "neighbours": "knn",
}  # fmt: skip


def describe(dataset: xr.Dataset) -> Description:
    """Makes a table with one row per ablation, and every figure for which the plan has enough ablations.

    Args:
      dataset: the result of `ablate`.
    """
    rows = ablation_table(dataset)
    all_kept = min(row["kept"] for row in rows) > 0.9999
    columns = [name for name in COLUMNS if name in rows[0] and not (name == "kept" and all_kept)]
    heading = (
        f"{dataset.sizes['image']} images; 95% intervals resample {interval_over(rows[0])} and random draws\n"
        "strength, logits: changed share of the squared strength and of the logits' variance\n"
    )
    heading = "\n".join(textwrap.fill(line, 80) for line in heading.splitlines()) + "\n"
    text = heading + _table(rows, columns)
    drawn = {name: lambda figure=figure: figure for name, figure in figures.ablation_figures(dataset, rows).items()}
    return Description(text, rows, {"ablations": rows}, drawn, stale=figures.ABLATIONS)


def _table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Formats the rows as text with at most 80 characters per line, grouped by edit and selection."""
    numbers = format_rows([{COLUMNS[name]: row[name] for name in columns} for row in rows], {"modes": ""})
    heading, *lines = numbers.split("\n")
    parts, before, several = [heading], "", len({row["match"] for row in rows} - {""}) > 1
    for row, line in zip(rows, lines, strict=True):
        edit = f"{in_words(row['edit'], row['key_bias'])} {row['select']}".strip()
        edit += f" (matched on {row['match']})" if several and row["match"] else ""
        if edit not in (before, "none"):
            parts.append(textwrap.fill(edit, 80, subsequent_indent="  "))
        before = edit
        parts.append(line)
    return "\n".join(parts)
