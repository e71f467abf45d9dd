"""Names that tables of ablations and figures share."""

READOUTS = ("head", "probe", "neighbours")
UNEDITED, TARGETED, RANDOM = "unedited", "targeted", "random"


def in_words(edit: str, key_bias: int) -> str:
    """An edit, and whether it also takes out the key bias."""
    return edit if key_bias else f"{edit}, no key bias"
