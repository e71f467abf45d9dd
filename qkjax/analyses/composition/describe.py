"""Makes tables and figures of the composition of heads."""

import xarray as xr

from qkjax import figures
from qkjax.analyses.composition.tables import is_later, layer_rows, side_rows, strongest_rows
from qkjax.analyses.outcome import Description
from qkjax.results.rows import format_rows


def describe(dataset: xr.Dataset) -> Description:
    """Makes tables of the sides, of pairs of layers and of the strongest pairs of heads, and two figures.

    Args:
      dataset: the result of `composition`.
    """
    name, sides, strongest = dataset.attrs["model"], side_rows(dataset), strongest_rows(dataset)
    short = [
        {"side": row["side"], "from": f"L{row['from_layer']} H{row['from_head']}",
         "to": f"L{row['to_layer']} H{row['to_head']}", "score": row["score"], "chance": row["chance"],
         "modes": f"{row['from_mode']} to {row['to_mode']}", "share": row["mode_share"], "cosine": row["mode_cosine"]}
        for row in sorted(strongest, key=lambda row: -row["score"])[:12]
    ]  # fmt: skip
    titles = {"side": "side", "pairs": "pairs", "mean": "mean", "above": "above", "pairs_control": "control",
              "mean_control": "mean ", "above_control": "above ", "mean_by_chance": "chance"}  # fmt: skip
    texts = [format_rows([{title: row[name] for name, title in titles.items()} for row in sides], {"side": ""})]
    if short:
        columns = {"side": "", "from": "", "to": "", "modes": ""}
        texts.append(f"the strongest pairs, and the main pair of modes of each:\n{format_rows(short, columns)}")
    tables = {"sides": sides, "layers": layer_rows(dataset)} | ({"pairs": strongest} if strongest else {})
    score, names = dataset.score.values, [str(side) for side in dataset.side.values]
    by_chance, later = float(dataset.attrs["mean_by_chance"]), is_later(dataset)
    chance = dataset.chance.values
    return Description(
        "\n".join(texts),
        sides,
        tables,
        {
            "composition_by_layer": lambda: figures.composition_by_layer(name, names, score, by_chance),
            "composition_of_pairs": lambda: figures.composition_of_pairs(name, names, score, later, chance),
        },
    )
