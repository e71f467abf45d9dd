"""The address of a file of the catalogue."""

import os
from urllib.parse import quote

from qkjax.weights.catalogue import Entry

GOOGLE = "https://storage.googleapis.com"  # QKJAX_GS_URL takes its place: a mirror, laid out likewise


def address(entry: Entry) -> str:
    """The URL of a file."""
    if entry.kind == "gs":
        return f"{os.environ.get('QKJAX_GS_URL', GOOGLE).rstrip('/')}/{quote(entry.path)}"
    return entry.url
