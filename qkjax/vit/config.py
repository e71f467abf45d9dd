"""What a ViT is, apart from its weights."""

from dataclasses import asdict, dataclass
from typing import Literal, Self

from qkjax.errors import QkjaxError, nearest

Pool = Literal["tok", "gap", "map", "none", "0"]


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
    posemb_resample: Literal["linear", "bicubic"] = "linear"
    pool: Pool = "gap"
    rep_size: int | None = None
    classes: int | None = None
    registers: int = 0
    layer_scale: bool = False
    norm_eps: float = 1e-6
    gelu: Literal["tanh", "exact"] = "tanh"

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return (self.pool == "tok") + self.registers

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names that `load(..., name=value)` accepts as overrides."""
        return tuple(cls.__dataclass_fields__)

    def replace(self, **changes) -> Self:
        """A copy with some fields changed; pairs may be lists, as JSON gives them.

        Raises:
          QkjaxError: a field that does not exist.
        """
        for name in changes:
            if name not in self.field_names():
                raise QkjaxError(f"a ViT has no setting {name!r}{nearest(name, self.field_names())}")
        pairs = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        return type(self)(**{**{k: getattr(self, k) for k in self.field_names()}, **pairs})
