"""Table and figures of ablations."""

import xarray as xr

from qkjax import figures
from qkjax.analyses.ablate.tables import ablation_table
from qkjax.analyses.outcome import Description
from qkjax.results.labels import in_words
from qkjax.results.rows import format_rows

COLUMNS = {
    "edit": "edit", "select": "select", "modes": "modes", "seeds": "seeds", "share": "share", "kept": "kept",
    "representation": "repr", "attention": "attn", "preference": "pref", "logits": "logits", "head": "head",
    "probe": "probe", "neighbours": "knn",
}  # fmt: skip


def describe(dataset: xr.Dataset) -> Description:
    """A table with one row per ablation, and the figures that the plan is enough for.

    Args:
      dataset: of `ablate`.
    """
    rows = ablation_table(dataset)
    all_kept = min(row["kept"] for row in rows) > 0.9999
    columns = [name for name in COLUMNS if name in rows[0] and not (name == "kept" and all_kept)]
    short = [{COLUMNS[n]: row[n] for n in columns} | {"edit": in_words(row["edit"], row["key_bias"])} for row in rows]
    text = f"{dataset.sizes['image']} images\n" + format_rows(short, dict.fromkeys(("edit", "select", "modes"), ""))
    drawn = {name: lambda figure=figure: figure for name, figure in figures.ablation_figures(dataset, rows).items()}
    return Description(text, rows, {"ablations": rows}, drawn, stale=figures.ABLATIONS)
