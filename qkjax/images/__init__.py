"""Loads images and masks, and converts them to the input of a model.

few, _ = qkjax.images.photographs().spread(4)
images = qkjax.images.open_images("folder")
"""

from importlib import import_module

_HOME = {
    "ImageSet": "sets",
    "mosaics": "segmented",
    "open_images": "sources",
    "open_o3": "o3",
    "open_objects": "segmented",
    "patterns": "generated",
    "photographs": "default_set",
}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'qkjax.images' has no attribute {name!r}")
    return getattr(import_module(f"qkjax.images.{_HOME[name]}"), name)
