"""The URL from which an entry of the catalogue is downloaded."""

import os
from urllib.parse import quote

from qkjax.weights.catalogue import Entry

GOOGLE = "https://storage.googleapis.com"  # QKJAX_GS_URL replaces this address by that of a mirror with the same layout
HUB = "https://huggingface.co"  # HF_ENDPOINT replaces this address


def hub_address() -> str:
    """The address of the Hugging Face hub."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def address(entry: Entry) -> str:
    """The URL of an entry's file or hub repository, or a string that identifies any other source."""
    if entry.kind == "gs":
        return f"{(os.environ.get('QKJAX_GS_URL') or GOOGLE).rstrip('/')}/{quote(entry.path)}"
    if entry.kind == "hf":
        return f"{hub_address()}/{entry.repo}/tree/{entry.revision}"
    if entry.kind == "pypi":
        return f"pypi:{entry.package}/{entry.version}/{entry.wheel}/{entry.member}"
    return entry.url
