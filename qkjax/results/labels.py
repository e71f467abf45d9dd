"""Names of edits that both the tables and the figures of ablations use."""

READOUTS = ("head", "probe", "neighbours")
UNEDITED, TARGETED, RANDOM = "unedited", "targeted", "random"


def in_words(edit: str, key_bias: int) -> str:
    """The name of an edit, with the addition "no key bias" if the edit also removes the key bias."""
    return edit if key_bias else f"{edit}, no key bias"
