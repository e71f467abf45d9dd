"""Reads the parameters of an Equinox module under the names of torch models, and the facts about a module of Equimo."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qkjax.errors import QkjaxError
from qkjax.weights.families.facts import ROTARY, Facts

CHUNK = re.compile(r"blocks\.(\d+)\.blocks\.(\d+)\.(.+)")
RENAMED = {"prenorm.": "norm1.", "norm.": "norm2.", "mlp.w1.": "mlp.gate_proj.", "mlp.w2.": "mlp.up_proj.",
           "mlp.w3.": "mlp.down_proj."}  # fmt: skip
POOLS = {"token": "tok", "avg": "gap", "": "none"}
ACTIVATIONS = {
    "gelu_tanh": jax.nn.gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def is_equinox(model: Any) -> bool:
    """Whether the model is an Equinox module."""
    return any(kind.__module__.startswith("equinox.") for kind in type(model).__mro__)


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """Copies the arrays of an Equinox module; returns a dict whose keys are paths of attributes, joined by dots."""
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    named = {".".join(map(_key, path)): leaf for path, leaf in leaves if hasattr(leaf, "shape")}
    if _is_equimo(model):
        named = {_timm_name(name, model): value for name, value in named.items() if "local_cls_norm" not in name}
    arrays = {name: np.array(value) for name, value in named.items()}
    return {name: _flat_bias(name, array) for name, array in arrays.items()}


def facts_of(model: Any) -> Facts:
    """The facts about a vision transformer of Equimo. No facts are known about any other module.

    Raises:
      QkjaxError: the model is a vision transformer of Equimo, but has parts that qkjax does not know.
    """
    if not _is_equimo(model):
        return Facts()
    block, others = model.blocks[0].blocks[0], [other for chunk in model.blocks for other in chunk.blocks]
    kinds = {part: type(getattr(block, part)).__name__ for part in ("attn", "mlp", "prenorm", "postnorm")}
    unknown = {
        "layers that differ from each other": len({_kind_of(other) for other in others}) > 1,
        "norms with different epsilons": len(
            {float(n.eps) for b in others for n in (b.prenorm, b.norm)} | {float(model.norm.eps)}
        )
        > 1,
        ROTARY.removeprefix("it has "): model.local_pos_embed is not None,
        f"attention of class {kinds['attn']}": kinds["attn"] != "Attention",
        "normalised queries and keys": not _is_identity(getattr(block.attn, "q_norm", None)),
        f"an MLP of class {kinds['mlp']}": kinds["mlp"] not in ("Mlp", "SwiGlu"),
        "a norm inside its MLP": not _is_identity(getattr(block.mlp, "norm", None)),
        "norms after its attention": kinds["postnorm"] != "Identity",
        f"norms of class {kinds['prenorm']}": kinds["prenorm"] != "LayerNorm",
        "a norm of its patches": not _is_identity(getattr(model.patch_embed, "norm", None)),
        f"pooling {model.global_pool!r}": model.global_pool not in POOLS,
        "no learned position embedding": model.global_pos_embed is None and model.local_pos_embed is None,
    }
    if part := next((part for part, has in unknown.items() if has), None):
        raise QkjaxError(f"Equimo's {type(model).__name__} has {part}, which qkjax does not know")
    settings = {
        "heads": int(block.attn.num_heads),
        "norm_eps": float(model.norm.eps),
        "activation": "swiglu" if kinds["mlp"] == "SwiGlu" else _activation(block.mlp.act_layer),
        "pool": POOLS[model.global_pool],
        "posemb_resample": "bicubic_antialias",
    }
    coarser = "if positions are resampled to a coarser grid, Equimo does not use antialiasing, but qkjax does"
    return Facts(
        settings,
        grids=((int(model.embed_size),) * 2,),
        prefix_positions=bool(model.num_embedded_prefix_tokens),
        complete=True,
        notes=() if model.antialias or not model.dynamic_img_size else (coarser,),
    )


def _kind_of(block: Any) -> tuple:
    """The properties of a block that must be equal in all layers."""
    parts = (block.attn, block.mlp, block.prenorm, getattr(block.attn, "q_norm", None))
    return (*(type(part).__name__ for part in parts), block.attn.num_heads, getattr(block.mlp, "act_layer", None))


def _is_equimo(model: Any) -> bool:
    return type(model).__name__ == "VisionTransformer" and type(model).__module__.startswith("equimo.")


def _is_identity(part: Any) -> bool:
    return part is None or type(part).__name__ == "Identity"


def _key(key: Any) -> str:
    """The attribute name or the index of one step in a path."""
    return str(next(getattr(key, name) for name in ("name", "idx", "key") if hasattr(key, name)))


def _timm_name(name: str, model: Any) -> str:
    """timm's name for a parameter of Equimo, in which the layers are divided into several chunks."""
    if found := CHUNK.fullmatch(name):
        before = sum(len(chunk.blocks) for chunk in model.blocks[: int(found[1])])
        rest = found[3]
        for old, new in RENAMED.items():
            if rest.startswith(old):
                rest = new + rest.removeprefix(old)
                break
        return f"blocks.{before + int(found[2])}.{rest}"
    return {"global_pos_embed.weight": "pos_embed", "reg_tokens": "reg_token"}.get(name, name)


def _flat_bias(name: str, array: np.ndarray) -> np.ndarray:
    """Removes the axes of length one that Equinox's convolutions add to a bias."""
    return array.reshape(-1) if name.endswith("bias") else array


def _activation(function: Any) -> str:
    """The name of an activation function, which is identified by its values.

    Raises:
      QkjaxError: qkjax does not know the activation.
    """
    points = jnp.linspace(-4, 4, 33)
    values = function(points)
    for name, known in ACTIVATIONS.items():
        if np.allclose(values, known(points), atol=1e-6):
            return name
    raise QkjaxError(f"Equimo's MLP has the activation {function!r}, expected one of {', '.join(ACTIVATIONS)}")
