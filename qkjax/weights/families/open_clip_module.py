"""What a live image tower of open_clip computes, as far as its parameters do not show it."""

from typing import Any

from qkjax.errors import QkjaxError
from qkjax.weights.families.facts import Facts

ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu"}


def facts_of(visual: Any) -> Facts:
    """The facts about `visual` of an open_clip model.

    Raises:
      QkjaxError: not a vision transformer, or one with parts that qkjax does not know.
    """
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if not blocks or not hasattr(blocks[0].attn, "num_heads"):
        raise QkjaxError(f"open_clip's {type(visual).__name__} is not a vision transformer that qkjax knows")
    block, act = blocks[0], type(getattr(blocks[0].mlp, "gelu", None)).__name__
    unknown = {
        "attention pooling": getattr(visual, "attn_pool", None) is not None,
        f"activation {act}": act not in ACTIVATIONS,
        f"pooling {getattr(visual, 'pool_type', 'tok')!r}": getattr(visual, "pool_type", "tok") not in ("tok", "avg"),
        "its last norm after the pooling": getattr(visual, "final_ln_after_pool", False),
        "no norm before its first layer": type(visual.ln_pre).__name__ == "Identity",
    }
    if part := next((part for part, has in unknown.items() if has), None):
        raise QkjaxError(f"open_clip's {type(visual).__name__} has {part}, which qkjax does not know")
    heads = int(block.attn.num_heads)
    settings = {"heads": heads, "norm_eps": float(block.ln_1.eps), "activation": ACTIVATIONS[act],
                "pool": {"tok": "tok", "avg": "gap"}[getattr(visual, "pool_type", "tok")],
                "posemb_resample": "bicubic_antialias"}  # fmt: skip
    return Facts(
        settings,
        head_dim=block.attn.embed_dim // heads,
        grids=(tuple(visual.grid_size),),
        prefix_positions=True,
        complete=True,
        notes=("the output is the pooled token; open_clip's projection of it is left out",),
    )
