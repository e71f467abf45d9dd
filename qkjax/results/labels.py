"""Names of edits that both the tables and the figures of ablations use."""

from collections.abc import Mapping

READOUTS = ("head", "probe", "neighbours")
UNEDITED, TARGETED, RANDOM = "unedited", "targeted", "random"


def in_words(edit: str, key_bias: int) -> str:
    """The name of an edit, with the addition "no key bias" if the edit also removes the key bias."""
    return edit if key_bias else f"{edit}, no key bias"


def interval_over(row: Mapping) -> str:
    """What the intervals of a row of `ablation_table` resample, such as "15 photographs"."""
    return f"{row['groups']} {row['interval_unit']}{'s' * (row['groups'] != 1)}"
