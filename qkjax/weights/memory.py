"""Reads models in memory: torch, flax.nnx and Equinox modules, nnx states, dictionaries of arrays, and bare kernels.

Parameters are copied to the host, so that further training does not change the checkpoint. The model itself stays on
its device.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.query_key import QueryKey
from qkjax.vit.config import ViTConfig
from qkjax.vit.tree import bare_tree
from qkjax.weights import preprocessing
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.families import described, equinox_module, open_clip, timm
from qkjax.weights.families.big_vision import assumptions, read_vit
from qkjax.weights.families.facts import Facts, ParsedModel, from_module_facts
from qkjax.weights.families.read_all import check_finite
from qkjax.weights.families.stated import StatedPreprocess
from qkjax.weights.families.timm_module import facts_of as facts_of_timm
from qkjax.weights.families.torch_layouts import read_state
from qkjax.weights.formats.npz import Header
from qkjax.weights.formats.state_dict import to_numpy

Kernel = Float[Array | np.ndarray, "layers embed heads head_dim"]
KERNEL_AXES = 4
WRAPPERS = ("module", "_orig_mod")
"""Attributes in which DataParallel and `torch.compile` store the wrapped model."""


def read(model: Any, settings: Mapping) -> tuple[ParsedModel, StatedPreprocess | None]:
    """Reads a model in memory; returns architecture, flat canonical arrays, notes and preprocessing.

    Raises:
      QkjaxError: qkjax does not know this kind of model, or `qkjax.load` refuses the model.
    """
    if _is_torch(model):
        return _read_torch(model, settings)
    of_equinox = equinox_module.is_equinox(model)
    arrays = equinox_module.arrays_of(model) if of_equinox else _arrays(model)
    if any("/" in name for name in arrays):
        container = _Arrays(arrays)
        config, flat = read_vit(container, list(arrays), None, settings)
        return (config, flat, assumptions(config, settings)), None
    facts = equinox_module.facts_of(model) if of_equinox else Facts()
    return read_state({name: partial(arrays.get, name) for name in arrays}, facts, settings), None


def name_of(model: Any) -> str:
    """A name for the checkpoint of a model in memory: the name of its architecture or of its class."""
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    return str(architecture or type(model).__name__)


def _is_torch(model: Any) -> bool:
    return any(kind.__module__ == "torch.nn.modules.module" for kind in type(model).__mro__)


def _read_torch(model: Any, settings: Mapping) -> tuple[ParsedModel, StatedPreprocess | None]:
    notes = []
    while inner := next((name for name in WRAPPERS if name in dict(model.named_children())), None):
        model = getattr(model, inner)
        notes.append(f"unwrapped from {inner!r}")
    if not _is_described(model):
        inside = dict(_described_inside(model))
        if len(inside) > 1:
            raise QkjaxError(f"the module contains several models ({', '.join(inside)}): load one of them")
        for name, only in inside.items():
            model = only
            notes.append(f"unwrapped from {name!r}; qkjax leaves out the rest of the module")
    facts, model, stated = _facts_of_module(model)
    readers = {name: partial(_copied, name, tensor) for name, tensor in model.state_dict().items()}
    return read_state(readers, facts, settings, notes), stated


def _library(model: Any) -> set[str]:
    """The names of the top-level packages that define the model's classes."""
    return {kind.__module__.partition(".")[0] for kind in type(model).__mro__}


def _is_described(model: Any) -> bool:
    """Whether a torch module states its architecture, as modules of open_clip, timm and transformers do."""
    timms = "timm" in _library(model) and hasattr(model, "pretrained_cfg")
    return timms or "open_clip" in _library(model) or hasattr(getattr(model, "config", None), "to_dict")


def _described_inside(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Finds, inside a module such as a trainer's, the outermost modules that state their architecture."""
    for name, child in module.named_children():
        if _is_described(child):
            yield prefix + name, child
        else:
            yield from _described_inside(child, f"{prefix}{name}.")


def _facts_of_module(model: Any) -> tuple[Facts, Any, StatedPreprocess | None]:
    """Facts about a torch module, its submodule that is the ViT, and its preprocessing if the module states one."""
    library = _library(model)
    if "open_clip" in library:
        visual = getattr(model, "visual", model)
        if (trunk := getattr(visual, "trunk", None)) is not None:
            return _facts_of_module(trunk)
        return open_clip.facts_of_module(visual), visual, None
    if hasattr(model, "pretrained_cfg") and "timm" in library:
        facts = facts_of_timm(model)
        if "refused" in facts:
            raise QkjaxError(f"timm's {name_of(model)}: {facts['refused']}")
        return from_module_facts(facts), model, timm.preprocess_of({"pretrained_cfg": model.pretrained_cfg})
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return described.facts_of_config(config.to_dict()), model, None
    return Facts(), model, None


def _copied(name: str, tensor: Any) -> np.ndarray:
    """Copies a torch tensor to the host, so that training does not change the copy."""
    return np.array(to_numpy(repr(name), tensor))


def _arrays(model: Any) -> dict[str, np.ndarray]:
    """Copies all arrays of a mapping, or of an nnx module or state; joins nested names with "/".

    Raises:
      QkjaxError: the model is none of these.
    """
    if not (_is_nnx(model) or isinstance(model, Mapping)):
        raise QkjaxError(
            f"cannot read a {type(model).__name__}: expected a name, a path, a torch, nnx or Equinox module, or a "
            "dict of arrays"
        )
    nested = _pure(model) if _is_nnx(model) else model
    flat = {"/".join(map(str, path)): value for path, value in flatten_dict(_as_dict(nested)).items()}
    return {name.removeprefix("params/"): np.array(value) for name, value in flat.items() if hasattr(value, "shape")}


def _is_nnx(model: Any) -> bool:
    return any(kind.__module__.startswith("flax.nnx") for kind in type(model).__mro__)


def _pure(model: Any) -> dict:
    from flax import nnx

    state = model if isinstance(model, nnx.State) else nnx.state(model)
    filtered = getattr(nnx, "filter_state", lambda state, kind: state.filter(kind))  # this name is new in flax 0.12
    return nnx.to_pure_dict(filtered(state, nnx.Param))


def _as_dict(nested: Mapping) -> dict:
    return {key: _as_dict(value) if isinstance(value, Mapping) else value for key, value in nested.items()}


class _Arrays:
    """Arrays in memory, with the methods of an open file that `read_vit` calls."""

    path = Path("the dictionary")

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def header(self, key: str) -> Header:
        return Header(self._arrays[key].shape, self._arrays[key].dtype)

    def read(self, key: str) -> np.ndarray:
        return self._arrays[key]


def from_kernels(
    query_kernel: Kernel,
    key_kernel: Kernel,
    *,
    query_bias: Array | np.ndarray | None = None,
    key_bias: Array | np.ndarray | None = None,
    norm_scale: Array | np.ndarray | None = None,
    norm_bias: Array | np.ndarray | None = None,
    name: str = "kernels",
) -> Checkpoint:
    """Makes a checkpoint from bare query and key kernels, for use with `analyze`, `compare` and `decompose`.

    Args:
      query_kernel, key_kernel: Wq and Wk, of shape (layers, embed, heads, head_dim), which multiply y from the right.
        They are copied.
      query_bias, key_bias: arrays of shape (layers, heads, head_dim); None means zeros.
      norm_scale, norm_bias: scale and bias, of shape (layers, embed), of the LayerNorm before attention; None means
        ones and zeros.
      name: name of the checkpoint.

    Returns:
      A checkpoint that contains only queries and keys. Functions that need images raise an error for it.

    Raises:
      QkjaxError: the shapes do not fit, or values are not finite.

    Example:
      >>> import numpy as np
      >>> import qkjax
      >>> query, key = np.random.default_rng(0).standard_normal((2, 3, 12, 2, 4))  # 3 layers, 2 heads
      >>> qkjax.analyze(qkjax.from_kernels(query, key)).weighted_cosine.shape
      (3, 2)
    """
    query, key = (np.array(kernel) for kernel in (query_kernel, key_kernel))
    if query.ndim != KERNEL_AXES or query.shape != key.shape:
        raise QkjaxError(
            f"query_kernel has shape {query.shape} and key_kernel {key.shape}: expected equal shapes (layers, embed, "
            "heads, head_dim)"
        )
    layers, embed, heads, head_dim = query.shape
    fill: list[tuple[str, Any, tuple[int, ...], Callable]] = [
        ("query_bias", query_bias, (layers, heads, head_dim), np.zeros),
        ("key_bias", key_bias, (layers, heads, head_dim), np.zeros),
        ("norm_scale", norm_scale, (layers, embed), np.ones),
        ("norm_bias", norm_bias, (layers, embed), np.zeros),
    ]
    parts = {"query_kernel": query, "key_kernel": key}
    for part, value, shape, default in fill:
        parts[part] = default(shape, query.dtype) if value is None else np.array(value)
        if parts[part].shape != shape:
            raise QkjaxError(f"{part} has shape {parts[part].shape}, expected {shape}")
    for part, value in parts.items():
        check_finite(part, value)
    config = ViTConfig(width=embed, depth=layers, heads=heads, head_dim=head_dim, mlp_dim=0, patch_size=(0, 0),
                       weights_only="it contains only query and key kernels")  # fmt: skip
    return Checkpoint(name, config, bare_tree(QueryKey(**parts)), name, preprocessing.from_architecture(config))
