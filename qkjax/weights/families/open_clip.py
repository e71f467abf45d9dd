"""Facts about open_clip's image towers that parameters do not determine, from a module or open_clip_config.json."""

from collections.abc import Mapping
from typing import Any

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import CLIP
from qkjax.weights.families import timm
from qkjax.weights.families.facts import Facts, height_and_width
from qkjax.weights.families.stated import StatedPreprocess, as_side, colours, joined

CONFIG = "open_clip_config.json"
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu"}
POOLS = {"tok": "tok", "avg": "gap"}
PROJECTED = "the output is the pooled token; qkjax leaves out open_clip's projection of this token"
READ = {"layers", "width", "head_width", "patch_size", "image_size", "act_kwargs", "norm_kwargs", "pool_type"}
VISIBLE = {"mlp_ratio", "ls_init_value", "pos_embed_type", "output_tokens", "patch_dropout", "attn_pooler_queries",
           "attn_pooler_heads"}  # fmt: skip
"""Keys of `vision_cfg` whose effect the parameters determine, and keys that have no effect in evaluation mode."""
RESIZES = {"shortest": "small side", "squash": "squash"}


def facts_of_module(visual: Any) -> Facts:
    """The facts about `visual` of a live open_clip model.

    Raises:
      QkjaxError: `visual` is not a vision transformer, or has parts that qkjax does not know.
    """
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if not blocks or not hasattr(blocks[0].attn, "num_heads"):
        raise QkjaxError(f"open_clip's {type(visual).__name__} is not a vision transformer that qkjax knows")
    block, act = blocks[0], type(getattr(blocks[0].mlp, "gelu", None)).__name__
    norms = [norm for other in blocks for norm in (other.ln_1, other.ln_2)] + [visual.ln_pre, visual.ln_post]
    epsilons = {float(norm.eps) for norm in norms if hasattr(norm, "eps")}
    unknown = {
        "layers with different activations": len({type(other.mlp.gelu).__name__ for other in blocks}) > 1,
        "norms with different epsilons": len(epsilons) > 1,
        "attention pooling": getattr(visual, "attn_pool", None) is not None,
        f"activation {act}": act not in ACTIVATIONS,
        f"pooling {getattr(visual, 'pool_type', 'tok')!r}": getattr(visual, "pool_type", "tok") not in POOLS,
        "its last norm after the pooling": getattr(visual, "final_ln_after_pool", False),
        "no norm before its first layer": type(visual.ln_pre).__name__ == "Identity",
    }
    if part := next((part for part, has in unknown.items() if has), None):
        raise QkjaxError(f"open_clip's {type(visual).__name__} has {part}, which qkjax does not know")
    activation = ACTIVATIONS[act]
    if activation == "gelu" and getattr(block.mlp.gelu, "approximate", "none") == "tanh":
        activation = "gelu_tanh"
    return _facts(
        int(block.attn.num_heads), float(block.ln_1.eps), activation, getattr(visual, "pool_type", "tok"),
        block.attn.embed_dim, tuple(visual.grid_size),
    )  # fmt: skip


def facts_of_config(config: Mapping) -> Facts:
    """The facts in an open_clip_config.json.

    Raises:
      QkjaxError: the image tower is not a vision transformer, or has parts that qkjax does not know.
    """
    model, vision = _sections(config)
    if name := vision.get("timm_model_name"):
        size = {"img_size": vision["image_size"]} if "image_size" in vision else {}
        pool = {"global_pool": vision["timm_pool"]} if vision.get("timm_pool") else {}
        return timm.facts_of({"architecture": name, "model_args": size, **pool}).with_notes(PROJECTED)
    if isinstance(vision.get("layers", 12), list):
        raise QkjaxError(f"{CONFIG} is for a ResNet, expected a vision transformer")
    defaults = (None, False, 0, "default")
    for key, value in vision.items():
        if key not in READ | VISIBLE and not key.startswith("timm_") and value not in defaults:
            raise QkjaxError(f"{CONFIG} has {key}={value!r}, which qkjax does not know")
    act, norm, pool = vision.get("act_kwargs") or {}, vision.get("norm_kwargs") or {}, vision.get("pool_type", "tok")
    if pool not in POOLS or set(act) - {"approximate"} or set(norm) - {"eps"}:
        raise QkjaxError(f"{CONFIG} has pool_type={pool!r}, act_kwargs={act}, norm_kwargs={norm}, not known to qkjax")
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    image, patch = height_and_width(vision.get("image_size", 224)), height_and_width(vision.get("patch_size", 16))
    if not (image and patch and as_side(width) and as_side(head_width)):
        raise QkjaxError(f"{CONFIG} has sizes that are not positive whole numbers: {dict(vision)}")
    activation = (
        "quick_gelu" if model.get("quick_gelu") else "gelu_tanh" if act.get("approximate") == "tanh" else "gelu"
    )
    grid = (image[0] // patch[0], image[1] // patch[1])
    return _facts(width // head_width, float(norm.get("eps", 1e-5)), activation, pool, width, grid)


def _facts(heads: int, eps: float, activation: str, pool: str, width: int, grid: tuple[int, int]) -> Facts:
    settings = {"heads": heads, "norm_eps": eps, "activation": activation, "pool": POOLS[pool],
                "posemb_resample": "bicubic_antialias"}  # fmt: skip
    return Facts(settings, head_dim=width // heads, grids=(grid,), prefix_positions=True, complete=True,
                 notes=(PROJECTED,))  # fmt: skip


def preprocess_of(config: Mapping) -> StatedPreprocess:
    """The preprocessing in an open_clip_config.json. For missing values, open_clip's defaults apply."""
    _, vision = _sections(config)
    values = config.get("preprocess_cfg")
    values = values if isinstance(values, Mapping) else {}
    size, mode = values.get("size", vision.get("image_size", 224)), values.get("resize_mode", "shortest")
    sides, clauses, fields = height_and_width(size), [], {}
    if sides and mode in RESIZES:
        fields = {"resize": RESIZES[mode], "resize_to": joined(*sides), "crop": joined(*sides)}
    else:
        clauses.append(f"has size={size!r} and resize_mode={mode!r} (expected one of {', '.join(RESIZES)})")
    mean, std = (colours(values.get(name) or CLIP[i]) for i, name in enumerate(("mean", "std")))
    if mean and std:
        fields |= {"mean": mean, "std": std}
    else:
        clauses.append("has no usable mean and std")
    fields["filter"] = "pil-bilinear" if values.get("interpolation") == "bilinear" else "pil-bicubic"
    return StatedPreprocess(CONFIG, fields, tuple(clauses))


def _sections(config: Mapping) -> tuple[Mapping, Mapping]:
    """The section `model_cfg`, and its subsection `vision_cfg`."""
    model = config.get("model_cfg", config)
    vision = model.get("vision_cfg") if isinstance(model, Mapping) else None
    if not isinstance(vision, Mapping):
        raise QkjaxError(f"{CONFIG} has no vision_cfg; download or copy the model again")
    return model, vision
