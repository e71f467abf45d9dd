"""The architecture of a ViT, without its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from qkjax.errors import QkjaxError, nearest

Pool = Literal["tok", "gap", "map", "none", "0"]
Activation = Literal["gelu_tanh", "gelu", "quick_gelu", "swiglu"]
Resample = Literal["linear", "bicubic", "bicubic_antialias", "bilinear_antialias", "bicubic_offset", "bilinear",
                   "bilinear_offset", "bilinear_crop", "nearest"]  # fmt: skip
Norm = Literal["layer", "rms"]
ADDED = ("pool_prefix", "patch_norm", "final_norm", "inner_norms", "norm", "weights_only")
"""Fields that came after version 0.1."""


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a plain ViT: big_vision's, with the parts that other families add to it.

    Attributes:
      width: embedding dimension D.
      depth: number of layers L.
      heads: number of attention heads H per layer.
      head_dim: dimension d of a head.
      mlp_dim: number of outputs of the first dense layer of the MLP.
      patch_size: (height, width) of a patch in pixels.
      channels: number of image channels.
      grid: (rows, columns) of the learned position embedding or of the relative position bias.
      posemb: position embedding: learned, fixed sine-cosine in two dimensions, or none.
      posemb_resample: how a learned position embedding is resampled to another grid: "linear" with
        aligned corners (big_vision), or torch's "bicubic" with half-pixel centres and a = -0.75, or its
        "bicubic_antialias", with a = -0.5 and at least as wide as a pixel of the new grid, or
        "bilinear_antialias" likewise; or "bicubic_offset", which is "bicubic" at a scale of (new size + 0.1) / old
        size, as in Meta's own code of DINOv2; or torch's "bilinear", the same at this scale ("bilinear_offset"), or
        to a square that covers the new grid and is cropped to it ("bilinear_crop", C-RADIO); or the "nearest"
        position (Idefics 2).
      pool: class token ("tok"), mean of the patches ("gap"), attention pooling ("map"), no pooling ("none": the head
        acts on every token), or the first token ("0").
      pool_prefix: "gap" and "map" pool the special tokens, too, and not the patches alone.
      class_token: whether there is a class token, before all other tokens.
      registers: number of tokens between class token and patches: registers, or DeiT's distillation token.
      distilled: whether the first of these tokens has a second head; the output is the mean of both heads (DeiT).
      rep_size: dimension of a tanh layer before the head; None without one.
      classes: number of outputs of the head; None without a head.
      layer_scale: each residual branch ends in a learned scale per channel (DINOv2, BEiT).
      pre_norm: a LayerNorm before the first layer (CLIP).
      pool_norm: the last LayerNorm acts only on the pooled token (fine-tuned SimMIM).
      patch_norm: a norm of the patch embedding, before the position embedding is added (AIMv2).
      final_norm: a LayerNorm after the last layer, or with `pool_norm` after the pooling.
      inner_norms: a LayerNorm of the attention's mixed values before the output projection, and one of the MLP's
        hidden units after the activation (BEiT-3).
      norm: LayerNorm, or RMSNorm ("rms"), which subtracts no mean and has no bias (AIMv2).
      relative_positions: a bias of the logits for each offset between patches (BEiT, SimMIM).
      norm_eps: epsilon of every norm.
      activation: of the MLP: tanh-approximated GELU (big_vision) or exact GELU, x sigmoid(1.702 x) (CLIP), or
        silu(a) * b of the two halves (a, b) of the first layer's output (DINOv2 giant).
      weights_only: why the model cannot be run on images, so that only its weights are analysed; "" if it can.

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
    inner_norms: bool = False
    norm: Norm = "layer"
    relative_positions: bool = False
    norm_eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    weights_only: str = ""

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches: class token and registers."""
        return self.class_token + self.registers

    def to_dict(self) -> dict:
        """Plain values for JSON. Fields that version 0.1 did not have are left out if they have their default, so that
        the results of that version still are those of the same model."""
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
}
"""Settings that cannot be inferred from the shapes of a parameter tree and can be passed to `load`."""


def check_settings(settings: Mapping) -> dict:
    """Checks settings for `load`.

    Returns:
      The settings, with lists converted to tuples.

    Raises:
      QkjaxError: an unknown setting, or an invalid value.
    """
    checked = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise QkjaxError(f"unknown setting {name!r}{nearest(name, SETTINGS)}; choose from {', '.join(SETTINGS)}")
        checked[name] = tuple(value) if name == "grid" and isinstance(value, list) else value
        if not _is_allowed(name, checked[name]):
            allowed = SETTINGS[name]
            choice = allowed if isinstance(allowed, str) else f"one of {', '.join(allowed)}"
            raise QkjaxError(f"{name}={value!r}: expected {choice}")
    return checked


def _is_allowed(name: str, value) -> bool:
    if name == "grid":
        return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    if name in ("pool_prefix", "final_norm"):
        return isinstance(value, bool)
    if name == "heads":
        return type(value) is int and value > 0
    if name == "norm_eps":
        return isinstance(value, float) and 0 < value < 1
    return value in SETTINGS[name]
