"""Describes the architecture of a ViT, without its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from qkjax.errors import QkjaxError, nearest
from qkjax.vit.rotary_config import Rotary, is_grid

Pool = Literal["tok", "gap", "map", "none", "0"]
Activation = Literal["gelu_tanh", "gelu", "quick_gelu", "swiglu"]
Resample = Literal["linear", "bicubic", "bicubic_antialias", "bilinear_antialias", "bicubic_offset", "bilinear",
                   "bilinear_offset", "bilinear_crop", "nearest", "tile"]  # fmt: skip
Norm = Literal["layer", "rms"]
ADDED = ("pool_prefix", "pool_heads", "pool_mlp_dim", "patch_norm", "final_norm", "inner_norms", "norm", "rotary",
         "window", "global_layers", "weights_only")  # fmt: skip
"""Fields of `ViTConfig` that were added after version 0.1."""


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of a ViT: that of big_vision's ViT, and optional parts of other model families.

    Attributes:
      width: embedding dimension D.
      depth: number of layers L.
      heads: number of attention heads H per layer.
      head_dim: dimension d of a head.
      mlp_dim: number of outputs of the first dense layer of the MLP.
      patch_size: (height, width) of a patch in pixels.
      channels: number of image channels.
      grid: (rows, columns) of the learned position embedding or of the relative position bias.
      posemb: position embedding: "learn" (learned), "sincos2d" (fixed sine-cosine in two dimensions) or "none".
      posemb_resample: method that resamples a learned position embedding to another grid. "linear" is linear
        interpolation with aligned corners (big_vision). "bicubic" is torch's bicubic interpolation with half-pixel
        centres and a = -0.75. "bicubic_antialias" is torch's antialiased bicubic interpolation with a = -0.5, whose
        kernel is scaled to the coarser grid. "bilinear_antialias" is torch's antialiased bilinear interpolation, whose
        kernel is scaled in the same way. "bicubic_offset" is "bicubic" with a scale of (new size + 0.1) / old size, as
        in Meta's own code of DINOv2. "bilinear" is torch's bilinear interpolation with half-pixel centres, and
        "bilinear_offset" is "bilinear" with the scale of "bicubic_offset". "bilinear_crop" resamples to a square that
        covers the new grid, and crops this square (C-RADIO). "nearest" uses the nearest position (Idefics 2). "tile"
        repeats the embedding from the top left without resampling it (SAM 3).
      pool: input of the head: the class token ("tok"), the mean of the patches ("gap"), the result of attention pooling
        ("map"), every token without pooling ("none"), or the first token ("0").
      pool_prefix: whether "gap" and "map" pool the special tokens in addition to the patches.
      pool_heads: number of heads of attention pooling; None if it has as many heads as each layer.
      pool_mlp_dim: dimension of the MLP of attention pooling; None if it is `mlp_dim`.
      class_token: whether there is a class token, which is then the first token.
      registers: number of tokens between the class token and the patches. These tokens are registers, or DeiT's
        distillation token.
      distilled: whether the first token after the class token has a second head, as in DeiT; the output is then the
        mean of both heads.
      rep_size: dimension of the tanh layer before the head; None if there is no such layer.
      classes: number of outputs of the head; None if there is no head.
      layer_scale: whether each residual branch ends with a learned scale per channel (DINOv2, BEiT).
      pre_norm: whether there is a LayerNorm before the first layer (CLIP).
      pool_norm: whether the last LayerNorm acts only on the pooled token (fine-tuned SimMIM).
      patch_norm: whether the patch embedding is normalised before the position embedding is added (AIMv2).
      final_norm: whether there is a LayerNorm after the last layer (if `pool_norm` is set, after the pooling).
      inner_norms: whether there are two more LayerNorms in each layer: before the output projection of attention, and
        after the activation of the MLP (BEiT-3). "mlp" if there is only the norm in the MLP (EVA-02).
      norm: "layer" for LayerNorm, or "rms" for RMSNorm, which does not subtract the mean and has no bias (AIMv2).
      relative_positions: whether the logits have a learned bias for each offset between patches (BEiT, SimMIM).
      rotary: rotary positions of queries and keys; None if the model has none.
      window: rows and columns of the windows of patches within which queries attend to keys; 0 if every query attends
        to all keys. Windows do not overlap. See `qkjax.vit.windows`.
      global_layers: the layers in which every query attends to all keys although the model has windows.
      norm_eps: epsilon of every norm.
      activation: activation of the MLP. The activation is GELU with the tanh approximation (big_vision), exact GELU, x
        sigmoid(1.702 x) (CLIP), or silu(a) * b, where a and b are the two halves of the first layer's output (DINOv2
        giant).
      weights_only: reason why qkjax cannot run the model on images and can only analyse its weights; "" if it can run
        the model.

    Example:
      ViTConfig(width=64, depth=4, heads=4, head_dim=16, mlp_dim=128, patch_size=(8, 8), grid=(4, 4), classes=10)

    Example:
      >>> import qkjax
      >>> config = qkjax.ViTConfig(width=24, depth=2, heads=2, head_dim=12, mlp_dim=48, patch_size=(8, 8), grid=(4, 4))
      >>> config.prefix_tokens
      0
    """

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp_dim: int
    patch_size: tuple[int, int]
    channels: int = 3
    grid: tuple[int, int] | None = None
    posemb: Literal["learn", "sincos2d", "none"] = "learn"
    posemb_resample: Resample = "linear"
    pool: Pool = "gap"
    pool_prefix: bool = False
    pool_heads: int | None = None
    pool_mlp_dim: int | None = None
    class_token: bool = False
    registers: int = 0
    distilled: bool = False
    rep_size: int | None = None
    classes: int | None = None
    layer_scale: bool = False
    pre_norm: bool = False
    pool_norm: bool = False
    patch_norm: bool = False
    final_norm: bool = True
    inner_norms: bool | Literal["mlp"] = False
    norm: Norm = "layer"
    relative_positions: bool = False
    rotary: Rotary | None = None
    window: int = 0
    global_layers: tuple[int, ...] = ()
    norm_eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    weights_only: str = ""

    @property
    def prefix_tokens(self) -> int:
        """The number of tokens before the patches: class token and registers."""
        return self.class_token + self.registers

    @property
    def prefix_names(self) -> list[str]:
        """The names of the tokens before the patches, in their order."""
        registers = ["distillation token" if self.distilled else f"register {i}" for i in range(self.registers)]
        return ["class token"] * self.class_token + registers

    def to_dict(self) -> dict:
        """Returns the fields as plain values for JSON.

        Fields that version 0.1 did not have are left out if they have their default values. For an architecture of
        version 0.1, the result is therefore the same as in version 0.1, and results of version 0.1 remain valid.
        """
        defaults = {name: self.__dataclass_fields__[name].default for name in ADDED}
        return {name: value for name, value in asdict(self).items() if name not in ADDED or value != defaults[name]}


SETTINGS = {
    "grid": "two positive whole numbers",
    "norm_eps": "a positive number",
    "pool": get_args(Pool),
    "activation": get_args(Activation),
    "posemb_resample": get_args(Resample),
    "norm": get_args(Norm),
    "pool_prefix": "True or False",
    "final_norm": "True or False",
    "heads": "a positive whole number",
    "rotary": "a Rotary, a dict of its fields, or None",
    "window": "a whole number of patches, or 0",
    "global_layers": "a tuple of layers, each counted from 0",
}
"""Arguments of `load` that set what the shapes of a parameter tree do not determine, with the allowed values."""


def check_settings(settings: Mapping) -> dict:
    """Checks the settings that are passed to `load`.

    Returns:
      The settings, with lists converted to tuples.

    Raises:
      QkjaxError: a setting is unknown or has an invalid value.
    """
    checked = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise QkjaxError(f"unknown setting {name!r}{nearest(name, SETTINGS)}; pass one of {', '.join(SETTINGS)}")
        checked[name] = tuple(value) if name in ("grid", "global_layers") and isinstance(value, list) else value
        if name == "rotary" and isinstance(value, Mapping):
            checked[name] = Rotary.from_dict(value)
        if not _is_allowed(name, checked[name]):
            allowed = SETTINGS[name]
            choice = allowed if isinstance(allowed, str) else f"one of {', '.join(allowed)}"
            raise QkjaxError(f"{name}={value!r}: expected {choice}")
    return checked


def _is_allowed(name: str, value) -> bool:
    if name == "grid":
        return is_grid(value)
    if name in ("pool_prefix", "final_norm", "rotary"):
        return isinstance(value, bool) if name != "rotary" else value is None or isinstance(value, Rotary)
    if name == "global_layers":
        return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)
    if name in ("heads", "window"):
        return type(value) is int and value >= (name == "heads")
    if name == "norm_eps":
        return isinstance(value, float) and 0 < value < 1
    return value in SETTINGS[name]
