"""The catalogue: checkpoints that qkjax knows by name, and the paths of their files on this machine."""

from qkjax.weights.catalogue.lookup import OBJECTIVES, Entry, entries, entry, is_name, supported
from qkjax.weights.catalogue.matching import search
from qkjax.weights.catalogue.paths import folder, path_of

__all__ = ["OBJECTIVES", "Entry", "entries", "entry", "folder", "is_name", "path_of", "search", "supported"]
