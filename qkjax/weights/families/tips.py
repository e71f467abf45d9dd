"""Reads Flax checkpoints of TIPS (Google's tips/scenic; arXiv 2410.16512, 2604.12012).

TIPS has its own parameter names.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.families.architecture import shape_of
from qkjax.weights.families.big_vision import Container, read_vit
from qkjax.weights.families.big_vision_names import BLOCK
from qkjax.weights.families.facts import Facts, ParsedModel
from qkjax.weights.formats.npz import Header

TOKENS = "ToTokenSequence_0"
POSITIONS = f"{TOKENS}/posembed_input"
CLASS_TOKENS = f"{TOKENS}/cls"
GATED = "FFNSwiGluFused_0"
KNOWN = {"pool": "tok", "norm_eps": 1e-6, "posemb_resample": "bilinear_antialias"}
"""Settings that the code of TIPS fixes. Its activation is `flax.linen.gelu` (the tanh approximation) or SwiGLU."""


def is_tips(keys: Iterable[str]) -> bool:
    """Whether parameters have the names of a TIPS checkpoint (image tower or text tower)."""
    return any(key.startswith((f"{TOKENS}/", "token_emb/")) for key in keys)


def read_tips(container: Container, keys: Iterable[str], settings: Mapping) -> ParsedModel:
    """Reads and checks a TIPS checkpoint; returns the architecture, a flat dict of canonical arrays, and notes.

    The second class token becomes a register. The two parts of a gated MLP's first layer are joined.

    Args:
      container: an open file.
      keys: keys of the parameters in the file.
      settings: settings of the caller, which take precedence.

    Raises:
      QkjaxError: the file contains TIPS's text tower, the grid does not match the position embedding, or `read_vit`
        refuses the file.
    """
    keys = list(keys)
    if POSITIONS not in keys:
        raise QkjaxError(f"parameter {POSITIONS!r} is missing: expected the image tower of TIPS, not its text tower")
    renamed = _Renamed(container, keys)
    grid, given = renamed.grid, settings.get("grid", renamed.grid)
    if given != grid:
        raise QkjaxError(f"the position embedding has {grid[0]} x {grid[1]} positions, which do not match grid={given}")
    activation = "swiglu" if any(f"/{GATED}/" in key for key in keys) else "gelu_tanh"
    facts = Facts({**KNOWN, "activation": activation}).with_settings(settings)
    config, arrays = read_vit(renamed, renamed.names, None, {**facts.settings, "grid": grid})
    return config, arrays, facts.notes


class _Renamed:
    """A TIPS checkpoint with big_vision's names of the parameters, and with the methods of an open file."""

    def __init__(self, container: Container, keys: list[str]):
        self.path: Path = container.path
        self._container = container
        shapes = {key: container.header(key).shape for key in keys}
        rows, columns = shape_of(shapes, POSITIONS, 4)[1:3]
        self.grid = rows, columns
        self._class_tokens = shape_of(shapes, CLASS_TOKENS, 3)[1]
        self.names: dict[str, list[str]] = {}
        for key in sorted(keys):
            self.names.setdefault(_big_vision_name(key), []).append(key)
        if self._class_tokens > 1:
            self.names["registers"] = [CLASS_TOKENS]

    def header(self, name: str) -> Header:
        """The shape and the dtype of a parameter, which may consist of several parts."""
        headers = [self._container.header(key) for key in self.names[name]]
        shape, dtype = headers[0]
        if name in ("cls", "registers"):
            shape = (shape[0], 1 if name == "cls" else self._class_tokens - 1, *shape[2:])
        elif name == "pos_embedding":
            shape = (shape[0], shape[1] * shape[2], *shape[3:])
        elif len(headers) > 1:
            shape = (*shape[:-1], sum(header.shape[-1] for header in headers))
        return Header(shape, dtype)

    def read(self, name: str) -> np.ndarray:
        """Reads the array of a parameter."""
        arrays = [self._container.read(key) for key in self.names[name]]
        if name in ("cls", "registers"):
            return arrays[0][:, :1] if name == "cls" else arrays[0][:, 1:]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        return joined.reshape(self.header(name).shape)


def _big_vision_name(key: str) -> str:
    """The name in big_vision's tree. Both parts of a gated MLP's first layer have the same name."""
    if key in (POSITIONS, CLASS_TOKENS):
        return "pos_embedding" if key == POSITIONS else "cls"
    name = key.removeprefix(f"{TOKENS}/").replace("transformer/encoderblock", BLOCK, 1)
    name = f"Transformer/{name}" if name.startswith("encoder_norm/") else name
    for old, new in (("Dense_0", "Dense_0"), ("Dense_1", "Dense_0"), ("Dense_2", "Dense_1")):
        if f"/{GATED}/{old}/" in name:
            return name.replace(f"/{GATED}/{old}/", f"/MlpBlock_0/{new}/")
    return name
