"""The URL of a file of the catalogue."""

import os
from urllib.parse import quote

from qkjax.weights.catalogue import Entry

GOOGLE = "https://storage.googleapis.com"  # QKJAX_GS_URL overrides it with a mirror of the same layout


def address(entry: Entry) -> str:
    """The URL of an entry whose kind is "gs", "https" or "hand"."""
    if entry.kind == "gs":
        return f"{os.environ.get('QKJAX_GS_URL', GOOGLE).rstrip('/')}/{quote(entry.path)}"
    return entry.url
