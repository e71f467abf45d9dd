"""State dicts of torch models, as Hugging Face, timm and Meta store them, to big_vision's tree.

Linear weights are (out, in) there and (in, out) here, and split into heads here.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from qkjax.errors import QkjaxError, nearest
from qkjax.vit.config import check_settings
from qkjax.weights.names import BLOCK
from qkjax.weights.torch_names import ATTENTION, our_name

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def to_tree(keys: Iterable[str], read: Callable[[str], np.ndarray], heads: int | None) -> dict[str, np.ndarray]:
    """Reads a state dict into flat canonical arrays, one at a time.

    Args:
      keys: its names.
      read: gives the array of a name.
      heads: attention heads; None where no configuration says, and then one for each 64 of width.

    Raises:
      QkjaxError: an unknown name, a part that is missing, or heads that do not divide the width.
    """
    named = {key: ours for key in sorted(keys) if (ours := our_name(key)) is not None}
    flat = {ours: read(key) for key, ours in named.items()}
    if "embedding/kernel" not in flat:
        raise QkjaxError(f"no patch embedding among the parameters{nearest('patch_embed.proj.weight', named)}")
    kernel = flat["embedding/kernel"]
    flat["embedding/kernel"] = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T[None, None]
    width = kernel.shape[0]
    heads = heads or max(width // 64, 1)
    if width % heads:
        raise QkjaxError(f"{heads} heads do not divide the width {width}: say heads=..., or mend config.json")
    _split_fused(flat, width)
    _fill_missing_biases(flat, width)
    _share_relative_bias(flat)
    _fold_prefix_positions(flat, width)
    head = flat.get("head/kernel")
    if head is not None and head.ndim == 2 and head.shape[1] != width:
        # DINOv2's classifier takes class token and mean side by side, which no plain head does
        del flat["head/kernel"], flat["head/bias"]
    return {name: _oriented(name, array, heads) for name, array in flat.items()}


def _split_fused(flat: dict[str, np.ndarray], width: int) -> None:
    """timm's fused query, key and value, and torch's own attention in SigLIP's pooling head."""
    for name in [n for n in flat if "/qkv/" in n]:
        fused = flat.pop(name)
        if fused.shape[0] != 3 * width:
            raise QkjaxError(f"{name!r} has shape {fused.shape}, wanted {3 * width} rows: query, key, value")
        for part, array in zip(("query", "key", "value"), np.split(fused, 3), strict=True):
            flat[name.replace("/qkv/", f"/{part}/")] = array


def _fill_missing_biases(flat: dict[str, np.ndarray], width: int) -> None:
    """BEiT and SimMIM have no key bias, CLIP no patch bias: zeros are the same function."""
    for name in [n for n in flat if n.endswith(("query/kernel", "key/kernel", "value/kernel", "embedding/kernel"))]:
        flat.setdefault(name.removesuffix("kernel") + "bias", np.zeros(width, flat[name].dtype))


def _share_relative_bias(flat: dict[str, np.ndarray]) -> None:
    """SimMIM's pre-training shares one table of relative position biases among all layers."""
    shared = flat.pop("relative_position_bias", None)
    for name in [n for n in flat if shared is not None and n.endswith("query/kernel") and BLOCK in n]:
        flat[name.replace("query/kernel", "relative_position_bias")] = shared


def _fold_prefix_positions(flat: dict[str, np.ndarray], width: int) -> None:
    """Adds the positions of class and distillation token to them: the same function. DeiT's
    distillation token then stands where registers stand."""
    for name in ("cls", "distillation", "registers"):
        if name in flat:
            flat[name] = flat[name].reshape(1, -1, width)
    positions = flat.pop("positions", flat.pop("positions/kernel", None))
    prefix = [name for name in ("cls", "distillation") if name in flat]
    if positions is not None:
        positions = positions.reshape(1, -1, width)
        rows = positions.shape[1]
        for row, name in enumerate(prefix):
            flat[name] = flat[name] + positions[:, row : row + 1]
        flat["pos_embedding"] = positions[:, len(prefix) :]
        if rows <= len(prefix):
            raise QkjaxError(f"the position embedding has {rows} rows, no more than there are special tokens")
    elif not any("relative_position_bias" in name for name in flat):
        raise QkjaxError("no position embedding: rotary ones (DINOv3) make the interaction depend on the offset")
    if "distillation" in flat:
        flat["registers"] = flat.pop("distillation")


def _oriented(name: str, array: np.ndarray, heads: int) -> np.ndarray:
    """(out, in) -> (in, out), and query, key, value, out split into heads."""
    kernel = name.endswith("/kernel") and array.ndim == 2
    array = array.T if kernel else array
    if f"{ATTENTION}/out/kernel" in name:
        return array.reshape(heads, -1, array.shape[-1])
    if ATTENTION in name and name.split("/")[-2] in ("query", "key", "value"):
        return array.reshape(*array.shape[:-1], heads, -1)
    return array


def settings_of(config: Mapping) -> dict:
    """What a Hugging Face or timm config.json says of a ViT beyond its shapes.

    Raises:
      QkjaxError: an activation that is not known, or a value of the wrong kind.
    """
    config = config.get("vision_config") or config
    if "architecture" in config:  # timm: the parameters are those of the architecture's name
        return {}
    settings = {}
    if "hidden_act" in config:
        act = "swiglu" if config.get("use_swiglu_ffn") else ACTIVATIONS.get(config["hidden_act"])
        if act is None:
            act, known = config["hidden_act"], ", ".join(ACTIVATIONS)
            raise QkjaxError(f"config.json has activation {act!r}, known are {known}")
        settings["activation"] = act
    if "layer_norm_eps" in config:
        settings["norm_eps"] = config["layer_norm_eps"]
    if "num_attention_heads" in config:
        settings["heads"] = config["num_attention_heads"]
    return check_settings(settings)


def defaults(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """What a file without config.json is taken to be; torch resamples position embeddings by bicubic."""
    if "pre_norm/scale" in shapes:
        own = {"activation": "quick_gelu", "norm_eps": 1e-5}  # CLIP
    elif "MAPHead_0/probe" in shapes:
        own = {"activation": "gelu_tanh"}  # SigLIP
    else:
        own = {"activation": "gelu"}
    return {"posemb_resample": "bicubic", **own}
