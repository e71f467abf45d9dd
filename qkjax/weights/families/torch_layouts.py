"""Converts state dicts of torch models (Hugging Face, timm, open_clip, Meta) to big_vision's tree.

Linear weights have shape (out, in) in torch. Here, they have shape (in, out), and are split into heads.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.vit.config import ViTConfig
from qkjax.weights.families.architecture import check_shapes, infer_config
from qkjax.weights.families.big_vision_names import BLOCK
from qkjax.weights.families.facts import Facts, ParsedModel
from qkjax.weights.families.read_all import check_finite, read_all
from qkjax.weights.families.torch_checks import check_ranks, check_rotation_is_stated, check_stated_sizes
from qkjax.weights.families.torch_heads import head_count, split_fused
from qkjax.weights.families.torch_mlp import is_gated, join_gated
from qkjax.weights.families.torch_names import ATTENTION, MODES_ONLY, QUERY_PART, canonical_name, wrappers
from qkjax.weights.families.torch_patches import fold_pixel_scale, orient_patches
from qkjax.weights.families.torch_positions import fold_positions
from qkjax.weights.families.torch_rotary import CENTRED_EPS, with_stored_rotation
from qkjax.weights.families.torch_towers import image_tower

Arrays = dict[str, np.ndarray]


def read_state(
    readers: Mapping[str, Callable[[], np.ndarray]], facts: Facts, settings: Mapping, notes: Sequence[str] = ()
) -> ParsedModel:
    """Reads the image model in a state dict.

    Args:
      readers: a dict from each parameter's name to a function that returns its array.
      facts: facts about the model.
      settings: those of the caller, which take precedence.
      notes: additional notes, which are returned together with the notes on this model.

    Raises:
      QkjaxError: a parameter is not finite, or `image_tower` or `to_vit` refuses the state dict.
    """
    names, left_out = image_tower(readers)
    unwrapped = [f"qkjax removed {prefix!r} from the names of the parameters"] if (prefix := wrappers(names)) else []
    facts = facts.with_settings(settings).with_notes(*notes, *unwrapped, *left_out)
    return to_vit(names, lambda name: check_finite(name, readers[name]()), facts)


def to_vit(keys: Iterable[str], read: Callable[[str], np.ndarray], facts: Facts) -> ParsedModel:
    """Converts and checks a state dict; returns the architecture, a flat dict of canonical arrays, and notes.

    Args:
      keys: names of the parameters in the state dict.
      read: function from a name to its array.
      facts: facts about the model; other settings are inferred, or are defaults of the family.

    Raises:
      QkjaxError: `to_tree`, `infer_config` or `check_shapes` refuses the state dict.
    """
    keys, read, left_out = facts.layout.apply(keys, read)
    facts = facts.with_notes(*left_out)
    if facts.settings.get("weights_only"):
        return _queries_and_keys(keys, read, facts)
    facts = with_stored_rotation(keys, read, facts)
    flat, grid, notes = to_tree(keys, read, facts)
    shapes = {name: array.shape for name, array in flat.items()}
    assumed = {name: value for name, value in _defaults(shapes, facts).items() if name not in facts.settings}
    settings = {**assumed, **facts.settings, "grid": grid}
    config = infer_config(shapes, settings)
    check_shapes(shapes, config)
    check_stated_sizes(config, facts)
    if not facts.complete:
        stated = {**assumed, **({} if "pool" in facts.settings else {"pool": config.pool})}
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(stated.items()))
        rotary = "" if config.rotary else "no rotary positions, and "
        form = f"{rotary}norms before attention and MLP"
        notes = (*notes, f"assumed, because the file does not state it: {listed}; {form}")
    return config, flat, notes


def _queries_and_keys(keys: Iterable[str], read: Callable[[str], np.ndarray], facts: Facts) -> ParsedModel:
    """Reads only queries, keys and the norms before them, for a model that qkjax cannot run on images."""
    names = {key: canonical_name(key, strict=False) for key in sorted(keys)}
    used = {key: name for key, name in names.items() if name and MODES_ONLY.search(name)}
    flat = {used[key]: array for key, array in read_all(read, used).items()}
    if len(flat) < len(used):
        raise QkjaxError("two parameters have the same name, that of a query or key: expected a file with one model")
    if unread := next((key for key, name in names.items() if name is None and QUERY_PART.search(key)), None):
        raise QkjaxError(f"unknown parameter {unread!r}, expected queries and keys with only a weight and a bias")
    check_ranks(flat, {name: key for key, name in names.items() if name})
    if not flat:
        raise QkjaxError("the parameters have no queries and keys with known names")
    heads, rows = head_count(flat, facts)
    split_fused(flat, rows)
    flat = {name: array for name, array in flat.items() if "/value/" not in name}
    _fill_missing_biases(flat, facts)
    arrays = {name: _oriented(name, array, heads) for name, array in flat.items()}
    width, _, head_dim = arrays[f"{BLOCK}_0/{ATTENTION}/query/kernel"].shape
    depth = sum(name.endswith("query/kernel") for name in arrays)
    settings = {k: v for k, v in facts.settings.items() if k in ("norm", "norm_eps", "weights_only")}
    config = ViTConfig(width=width, depth=depth, heads=heads, head_dim=head_dim, mlp_dim=0, patch_size=(0, 0),
                       **settings)  # fmt: skip
    check_stated_sizes(config, facts)
    return config, arrays, (*facts.notes, f"qkjax reads only queries and keys: {config.weights_only}")


def to_tree(
    keys: Iterable[str], read: Callable[[str], np.ndarray], facts: Facts
) -> tuple[Arrays, tuple[int, int] | None, tuple[str, ...]]:
    """Converts a state dict to a flat dict of canonical arrays, one array at a time.

    Args:
      keys: names of the parameters in the state dict.
      read: function from a name to its array.
      facts: facts about the model.

    Returns:
      The arrays, the grid of the position embedding, and notes on what qkjax assumed or left out.

    Raises:
      QkjaxError: a name is unknown, a part is missing, the number of heads is unknown, or the grid is ambiguous.
    """
    named = {key: name for key in sorted(keys) if (name := canonical_name(key)) is not None}
    first = {name: key for key, name in reversed(named.items())}
    if second := next((key for key, name in named.items() if first[name] != key), None):
        raise QkjaxError(
            f"both {first[named[second]]!r} and {second!r} contain {named[second]!r}: expected a file with one model"
        )
    flat = {named[key]: array for key, array in read_all(read, named).items()}
    check_ranks(flat, first)
    notes = [*facts.notes]
    orient_patches(flat, any("predictor_embed" in key for key in named), facts)
    fold_pixel_scale(flat)
    width = flat["embedding/kernel"].shape[-1]
    heads, rows = head_count(flat, facts)
    split_fused(flat, rows)
    check_rotation_is_stated(flat, facts)
    join_gated(flat)
    _fill_missing_biases(flat, facts)
    _share_relative_bias(flat)
    grid = fold_positions(flat, width, facts, notes)
    _drop_foreign_head(flat, width, facts, first, notes)
    pool_heads = facts.pool_heads or heads
    arrays = {
        name: _oriented(name, array, pool_heads if name.startswith("MAPHead") else heads)
        for name, array in flat.items()
    }
    return arrays, grid, tuple(notes)


def _drop_foreign_head(flat: Arrays, width: int, facts: Facts, names: Mapping[str, str], notes: list[str]) -> None:
    """Removes a classifier that is not a dense layer on the pooled token.

    The input of DINOv2's classifier is the class token concatenated with the mean of the patches. In transformers, the
    classifiers of CLIP and SigLIP take the mean of the patches as their input.
    """
    head = flat.get("head/kernel")
    if head is None or head.ndim != 2:
        return
    reason = facts.foreign_head
    if head.shape[1] == 2 * width:
        reason = "its input is the class token and the mean of the patches"
    elif names.get("head/kernel", "").endswith("classifier.weight") and (
        "MAPHead_0/probe" in flat or "pre_norm/scale" in flat
    ):
        reason = "its input is the mean of the patches before the last LayerNorm"
    if reason:
        flat.pop("head/kernel"), flat.pop("head/bias", None)
        notes.append(f"qkjax leaves out the classifier: {reason}")


def _fill_missing_biases(flat: Arrays, facts: Facts) -> None:
    """Adds zeros for each bias that all blocks lack, such as BEiT's key bias, and for the patch bias of CLIP.

    A bias that only some blocks lack is not added; a later check reports it as missing. Norms without a bias may be
    RMSNorms or LayerNorms; the facts must state the kind of norm.
    """
    present = {_in_any_block(name) for name in flat}
    for name in [n for n in flat if n.startswith(BLOCK) and n.endswith("/kernel")]:
        if _in_any_block(name).removesuffix("kernel") + "bias" not in present:
            flat[name.removesuffix("kernel") + "bias"] = np.zeros(flat[name].shape[0], flat[name].dtype)
    if "pre_norm/scale" in flat:  # CLIP's patches have none
        flat.setdefault("embedding/bias", np.zeros(flat["embedding/kernel"].shape[-1], flat["embedding/kernel"].dtype))
    if not any(name.endswith("LayerNorm_0/bias") and name.startswith(BLOCK) for name in flat):
        kind = facts.settings.get("norm")
        if kind is None:
            raise QkjaxError("the norms have no bias: pass norm='rms' for RMSNorm, or norm='layer' for LayerNorm")
        for name in [n for n in flat if n.endswith("/scale") and kind == "layer" and "LayerScale" not in n]:
            flat.setdefault(name.removesuffix("scale") + "bias", np.zeros_like(flat[name]))


def _in_any_block(name: str) -> str:
    """The name of a parameter without the number of its layer."""
    return re.sub(rf"^{BLOCK}_\d+/", f"{BLOCK}/", name)


def _share_relative_bias(flat: Arrays) -> None:
    """Copies relative position biases that all layers share, as in SimMIM's pre-training, to every layer."""
    shared = flat.pop("relative_position_bias", None)
    for name in [n for n in flat if shared is not None and n.endswith("query/kernel") and BLOCK in n]:
        own = name.replace("query/kernel", "relative_position_bias")
        flat[own] = flat[own] + shared if own in flat else shared


def _oriented(name: str, array: np.ndarray, heads: int) -> np.ndarray:
    """Transposes kernels to (in, out), and splits the parameters of the attention into heads.

    Raises:
      QkjaxError: the number of outputs is not a multiple of the number of heads.
    """
    kernel = name.endswith("/kernel") and array.ndim == 2
    array = array.T if kernel else array
    part = name.split("/")[-2] if ATTENTION in name else ""
    if part not in ("query", "key", "value") and f"{ATTENTION}/out/kernel" not in name:
        return array
    size = array.shape[0 if part == "out" else -1]  # of all heads
    if size % heads:
        raise QkjaxError(f"parameter {name!r} has {size} numbers for {heads} heads: expected a multiple of {heads}")
    if part == "out":
        return array.reshape(heads, -1, array.shape[-1])
    return array.reshape(*array.shape[:-1], heads, -1)


def _defaults(shapes: Mapping[str, tuple[int, ...]], facts: Facts) -> dict:
    """Default settings for a file without config.json: the defaults of the family that its parameters resemble."""
    if "pre_norm/scale" in shapes:
        family = {"activation": "quick_gelu", "norm_eps": 1e-5}  # CLIP
    elif "MAPHead_0/probe" in shapes:
        family = {"activation": "gelu_tanh", "norm_eps": 1e-6}  # SigLIP
    else:
        family = {"activation": "swiglu" if is_gated(shapes) else "gelu", "norm_eps": 1e-6}
    rotary = facts.settings.get("rotary")
    if rotary and rotary.coordinates == "centred" and "pos_embedding" not in shapes:
        return family | {"norm_eps": CENTRED_EPS}
    # In transformers and Meta's code, only DINOv2's models with registers use antialiasing.
    antialias = "registers" in shapes and "LayerScale_0/scale" in " ".join(shapes)
    return {"posemb_resample": "bicubic_antialias" if antialias else "bicubic", **family}
