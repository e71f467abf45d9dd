"""What a ViT is, apart from its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from qkjax.errors import QkjaxError, nearest

Pool = Literal["tok", "gap", "map", "none", "0"]
Gelu = Literal["tanh", "exact"]
Resample = Literal["linear", "bicubic"]


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a plain ViT, in big_vision's terms, with what DINOv2 adds.

    Attributes:
      width: embedding width D.
      depth: number of layers L.
      heads: attention heads H of a layer.
      head_dim: width d of a head.
      mlp_dim: hidden width of the MLP.
      patch_size: (height, width) of a patch in pixels.
      channels: channels of an image.
      grid: (rows, columns) of the learned position embedding; None for "sincos2d".
      posemb: learned, or fixed sine-cosine in two dimensions.
      posemb_resample: how a learned position embedding is brought to another grid: "linear" with
        aligned corners (big_vision), or "bicubic" with half-pixel centres and a = -0.75 (DINOv2).
      pool: class token, mean of tokens, attention pooling, no pooling (the head acts on every
        token), or the first patch token ("0").
      rep_size: width of the tanh layer before the head; None without one.
      classes: outputs of the head; None without one.
      registers: register tokens, which follow the class token.
      layer_scale: each residual branch ends in a learned scale per channel.
      norm_eps: epsilon of every LayerNorm.
      gelu: tanh approximation (big_vision) or the exact error function (DINOv2).
    """

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp_dim: int
    patch_size: tuple[int, int]
    channels: int = 3
    grid: tuple[int, int] | None = None
    posemb: Literal["learn", "sincos2d"] = "learn"
    posemb_resample: Resample = "linear"
    pool: Pool = "gap"
    rep_size: int | None = None
    classes: int | None = None
    registers: int = 0
    layer_scale: bool = False
    norm_eps: float = 1e-6
    gelu: Gelu = "tanh"

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return (self.pool == "tok") + self.registers

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


SETTINGS = {
    "grid": "two positive whole numbers",
    "norm_eps": "a positive number",
    "pool": get_args(Pool),
    "gelu": get_args(Gelu),
    "posemb_resample": get_args(Resample),
}
"""What the shapes of a tree do not show, and so may be said on loading."""


def check_settings(settings: Mapping) -> dict:
    """The settings, with lists made tuples.

    Raises:
      QkjaxError: a setting that does not exist, or a value it cannot have.
    """
    checked = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise QkjaxError(f"there is no setting {name!r}{nearest(name, SETTINGS)}; there are {', '.join(SETTINGS)}")
        checked[name] = tuple(value) if name == "grid" and isinstance(value, list) else value
        if not _is_allowed(name, checked[name]):
            allowed = SETTINGS[name]
            choice = allowed if isinstance(allowed, str) else f"one of {', '.join(allowed)}"
            raise QkjaxError(f"{name} is {value!r}, wanted {choice}")
    return checked


def _is_allowed(name: str, value) -> bool:
    if name == "grid":
        return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    if name == "norm_eps":
        return isinstance(value, float) and 0 < value < 1
    return value in SETTINGS[name]
