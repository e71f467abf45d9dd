"""Reads facts about a timm module that its parameters do not determine: heads, pooling, activation, norms, grid.

The functions read attributes and the names of classes, and import neither timm nor torch. `timm_architectures.json`
contains the results for every ViT architecture in timm (`benchmarks/survey.py` writes this file).
"""

from typing import Any

from qkjax.weights.families import timm_rotary
from qkjax.weights.families.facts import ROTARY

KNOWN = ("VisionTransformer", "VisionTransformerDistilled", "Beit", "Eva", "VisionTransformerSAM", "NaFlexVit",
         "VisionTransformerRelPos")  # fmt: skip
POOLS = {"token": "tok", "avg": "gap", "map": "map", "": "none"}
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
READ_ROTATIONS = ("NoneType", "Identity", "RotaryEmbeddingCat", "RotaryEmbeddingDinoV3", "RotaryEmbeddingMixed")
NORMS = {"LayerNorm": "layer", "LayerNormFp32": "layer", "RmsNorm": "rms", "RMSNorm": "rms"}
POST_NORM = (
    "its LayerNorms follow attention and MLP (residual post-norm): Wq Wk^T acts on the residual stream, not on the "
    "output of a LayerNorm"
)
BLOCKS = {
    "ResPostBlock": POST_NORM,
    "ResPostRelPosBlock": POST_NORM,
    "EvaBlockPostNorm": POST_NORM,
    "ParallelScalingBlock": "attention and MLP of a layer share one LayerNorm and run in parallel",
    "ParallelThingsBlock": "each layer has several attentions in parallel",
    "DiffParallelScalingBlock": "each head subtracts two attention maps (differential attention)",
}


def facts_of(model: Any) -> dict:
    """The facts about a timm model that `ViTConfig` needs in addition to the shapes of the parameters.

    Args:
      model: a module of timm.

    Returns:
      A dict with settings of `ViTConfig`, and with "prefix_positions": whether special tokens have position embeddings.
      If qkjax cannot read the model, the dict contains only the reason, under the key "refused". If qkjax reads only
      queries and keys, the dict contains the settings of the heads, and the reason under the key "weights_only".
    """
    block = model.blocks[0] if len(getattr(model, "blocks", ())) else None
    if reason := _refusal(model, block):
        return {"refused": reason}
    facts = {"heads": int(block.attn.num_heads), "norm_eps": float(block.norm1.eps), "norm": NORMS[_class(block.norm1)]}
    if head_dim := getattr(block.attn, "head_dim", None):
        facts["head_dim"] = int(head_dim)
    if reason := _limit(model, block):
        return facts | {"weights_only": reason}
    if not _is_absent(model, "rope"):
        facts["rotary"] = timm_rotary.rotary_of(model.rope)
    pool = getattr(model, "attn_pool", None)
    if pool is not None and int(pool.num_heads) != facts["heads"]:
        facts["pool_heads"] = int(pool.num_heads)
    patches = getattr(model, "patch_embed", None) or getattr(model, "embeds", None)
    facts |= {
        "activation": _activation(block.mlp),
        "pool": "map" if getattr(model, "attn_pool", None) is not None else POOLS[model.global_pool],
        "final_norm": not (_is_absent(model, "norm") and _is_absent(model, "fc_norm")),
        # The attention pooling of `Eva` includes all tokens.
        "pool_prefix": bool(
            getattr(model, "pool_include_prefix", False) or (pool is not None and _class(model) == "Eva")
        ),
        "prefix_positions": not getattr(model, "no_embed_class", False),
        "posemb_resample": f"{getattr(patches, 'pos_embed_interp_mode', 'bicubic')}_antialias",
    }
    for name, attribute in (("grid", "grid_size"), ("patch_size", "patch_size")):
        if value := getattr(patches, attribute, None):
            facts[name] = tuple(map(int, value))
    return facts


def _class(module: Any) -> str:
    return type(module).__name__


def _refusal(model: Any, block: Any) -> str:
    """The reason why qkjax's modes would not describe the model's heads, or "" if they do."""
    if _class(model) not in KNOWN or block is None:
        return f"timm's {_class(model)} is not an architecture that qkjax knows"
    if reason := next((BLOCKS[_class(other)] for other in model.blocks if _class(other) in BLOCKS), ""):
        return reason
    attention = block.attn
    reasons = {
        ROTARY: _class(getattr(model, "rope", None)) not in READ_ROTATIONS or (
            _class(model) != "Eva" and not _is_absent(model, "rope")),
        BLOCKS["DiffParallelScalingBlock"]: "Diff" in _class(attention),
        "it normalises queries and keys: a head has no single matrix Wq Wk^T": not all(
            _is_absent(other.attn, "q_norm") for other in model.blocks),
        "several query heads share a key head": getattr(attention, "num_kv_heads", None) not in (
            None, attention.num_heads),
        f"its norm {_class(block.norm1)} is not one that qkjax knows": _class(block.norm1) not in NORMS,
    }  # fmt: skip
    return next((reason for reason, holds in reasons.items() if holds), "")


def _limit(model: Any, block: Any) -> str:
    """The reason why qkjax can analyse the model's weights but cannot run the model, or "" if it can do both."""
    pool, act = getattr(model, "attn_pool", None), _class(getattr(block.mlp, "act", None))
    embeds = getattr(model, "embeds", None)
    reasons = {
        "its attention has windows and decomposed relative positions": _class(model) == "VisionTransformerSAM",
        "its relative position bias is computed by a part of timm": _class(model) == "VisionTransformerRelPos",
        "a convolutional network computes its tokens": _class(getattr(model, "patch_embed", None)) == "HybridEmbed",
        "its position embedding is the sum of one for rows and one for columns": not _is_absent(embeds, "pos_embed_x"),
        "its position embedding is resampled in a way of its own": getattr(embeds, "pos_embed_ar_preserving", False)
        or not getattr(embeds, "pos_embed_antialias", True),
        "its layers differ from each other": len({_kind_of(other) for other in model.blocks}) > 1,
        "its norms have different epsilons": len(_epsilons(model)) > 1,
        "its scores are not scaled by 1/sqrt(head_dim)": _is_scaled_otherwise(block.attn),
        timm_rotary.MIXED: _class(getattr(model, "rope", None)) == "RotaryEmbeddingMixed",
        "its rotary positions are unknown: the modes are those of Wq Wk^T": not _is_absent(model, "rope")
        and timm_rotary.rotary_of(model.rope) is None,
        "attention has an inner norm, but the MLP has none": _is_absent(block.mlp, "norm") and not _is_absent(
            block.attn, "norm"),
        "its attention pooling has another activation than its layers": pool is not None and _activation(
            block.mlp) != _activation(pool.mlp),
        "the output of its attention is gated": not _is_absent(block.attn, "gate"),
        f"its pooling {_class(pool)} is unknown": _class(pool) not in ("NoneType", "AttentionPoolLatent"),
        f"its pooling {model.global_pool!r} is unknown": pool is None and model.global_pool not in POOLS,
        f"its MLP {_class(block.mlp)} with {act} is unknown": _activation(block.mlp) is None,
    }  # fmt: skip
    return next((reason for reason, holds in reasons.items() if holds), "")


def _kind_of(block: Any) -> tuple:
    """The properties of a block that must be equal in all layers."""
    return (_class(block), _class(block.attn), block.attn.num_heads, _activation(block.mlp), _class(block.norm1),
            _is_absent(block.attn, "q_norm"))  # fmt: skip


def _epsilons(model: Any) -> set[float]:
    """The epsilons of all norms for which qkjax uses one common epsilon."""
    norms = [getattr(part, name, None) for part in model.blocks for name in ("norm1", "norm2")]
    norms += [getattr(model, name, None) for name in ("norm_pre", "norm", "fc_norm")]
    norms.append(getattr(getattr(model, "attn_pool", None), "norm", None))
    return {float(norm.eps) for norm in norms if getattr(norm, "eps", None) is not None}


def _is_scaled_otherwise(attention: Any) -> bool:
    """Whether scores have a scale other than 1/sqrt(head_dim). torch's fused attention ignores the module's scale."""
    scale, size = getattr(attention, "scale", None), getattr(attention, "head_dim", None)
    if not isinstance(scale, float) or not size or getattr(attention, "fused_attn", False):
        return False
    return abs(scale - size**-0.5) > 1e-6 * scale


def _is_absent(module: Any, name: str) -> bool:
    """Whether a part of a module is None or missing, or does nothing."""
    return _class(getattr(module, name, None)) in ("NoneType", "Identity")


def _activation(mlp: Any) -> str | None:
    """The name of the MLP's activation in qkjax; None if it is unknown."""
    act = _class(getattr(mlp, "act", None))
    if _class(mlp) == "SwiGLU" or (_class(mlp) == "GluMlp" and not mlp.gate_last):
        return "swiglu" if act == "SiLU" else None
    if _class(mlp) != "Mlp":
        return None
    return "gelu_tanh" if getattr(getattr(mlp, "act", None), "approximate", "none") == "tanh" else ACTIVATIONS.get(act)
