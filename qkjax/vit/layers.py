"""Defines the layers of the vision transformer in Flax Linen, with big_vision's parameter names.

Letters: B images, N tokens, D embedding, H heads, d head_dim. Layers return their intermediates.
"""

from collections.abc import Collection
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.interaction.rotary.rotation import Rotation, rotate
from qkjax.runtime.precision import full_precision
from qkjax.vit import posemb, tree
from qkjax.vit.attention import Precision, attention_logits, mixed_values, weighted_values
from qkjax.vit.config import ViTConfig


def _swiglu(x: Float[Array, "B N two_hidden"]) -> Float[Array, "B N hidden"]:
    gate, value = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * value


def _gelu(x: Float[Array, "B N hidden"]) -> Float[Array, "B N hidden"]:
    """Exact GELU as in torch: x (1 + erf(x / sqrt(2))) / 2, in float32 or wider.

    On a CPU, `nn.gelu` takes 2.5 times as long as this function, because it computes erfc. The values of `nn.gelu` are
    more accurate than 1 + erf(x) only for very negative x; in absolute terms, both have an error of at most 2e-7 |x| in
    float32.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.sqrt(0.5).astype(wide.dtype)))).astype(x.dtype)


ACTIVATIONS = {
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "gelu": _gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "swiglu": _swiglu,
}


def normalisation(config: ViTConfig, name: str | None) -> nn.Module:
    """A norm layer (LayerNorm or RMSNorm, as configured) with the given name in the parameter tree."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(epsilon=config.norm_eps, name=name)


def precision(dtype: str) -> Precision:
    """The precision of matrix products: full precision for float32 and float64, and the default for bfloat16.

    Full precision must be requested explicitly, because GPUs and TPUs otherwise round the factors of a float32 product.
    """
    match dtype:
        case "bfloat16":
            return None
        case "float32":
            return full_precision()
    return jax.lax.Precision.HIGHEST


def _rotated(x: Float[Array, "B N H d"], rotation: Rotation | None) -> Float[Array, "B N H d"]:
    """Rotates queries or keys of the last tokens, which are the patches, and in MLCD the class token and the patches.
    The tokens before them do not change.

    The rotation is computed in float32 and then rounded to the format of `x`, as in timm and in Meta's code of DINOv3.
    """
    if rotation is None:
        return x
    angles = rotation.angles
    pad = jnp.pad if isinstance(angles, jax.Array) else np.pad
    angles = pad(angles, ((x.shape[1] - len(angles), 0), (0, 0)))  # a rotation by 0 changes no bit
    return rotate(x, angles[:, None, :], rotation.pairs).astype(x.dtype)


class MultiHeadDotProductAttention(nn.Module):
    """Multi-head attention that also returns queries and keys and, on request, attention logits and attention weights.

    The softmax is computed in float32. Unless the logits or weights of all queries are requested, attention is computed
    in the form that is fastest on the platform; the logits and weights of some queries are then computed in addition. A
    rotation of the patches acts on the last tokens of queries and keys.
    """

    heads: int
    head_dim: int
    dtype: str
    relative_grid: tuple[int, int] | None = None
    inner_norm: nn.Module | None = None

    @nn.compact
    def __call__(
        self,
        queries_from: Float[Array, "B M D"],
        keys_from: Float[Array, "B N D"],
        capture: Collection[str] = (),
        rotation: Rotation | None = None,
        captured_queries: Int[Array | np.ndarray, "Q"] | None = None,
    ):
        kwargs = {
            "dtype": self.dtype,
            "kernel_init": nn.initializers.xavier_uniform(),
            "precision": precision(self.dtype),
        }
        project = partial(nn.DenseGeneral, features=(self.heads, self.head_dim), axis=-1, **kwargs)
        query = project(name="query")(queries_from)
        key = project(name="key")(keys_from)
        value = project(name="value")(keys_from)
        intermediates = {"query": query, "key": key}
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        intermediates |= {"rotated_query": query, "rotated_key": key}
        bias = None if self.relative_grid is None else self._relative_bias()
        requested, some = {"attention_logits", "attention"} & set(capture), captured_queries
        if requested:
            shown = (query, bias) if some is None else (query[:, some], None if bias is None else bias[:, some])
            logits = attention_logits(shown[0], key, shown[1], precision(self.dtype))
            intermediates |= {"attention_logits": logits, "attention": nn.softmax(logits, axis=-1)}
        if requested and some is None:
            mixed = weighted_values(intermediates["attention"], value, precision(self.dtype))
        else:
            mixed = mixed_values(query, key, value, bias, precision(self.dtype))
        if self.inner_norm is not None:
            joined = self.inner_norm(mixed.reshape(*mixed.shape[:-2], -1))
            mixed = joined.reshape(mixed.shape).astype(self.dtype)
        out = nn.DenseGeneral(queries_from.shape[-1], axis=(-2, -1), name="out", **kwargs)(mixed)
        return out, intermediates

    def _relative_bias(self) -> Float[Array, "H N N"]:
        index = posemb.relative_index(self.relative_grid)
        shape = (index.max() + 1, self.heads)
        table = self.param("relative_position_bias", nn.initializers.zeros, shape)
        return jnp.moveaxis(jnp.asarray(table, jnp.float32)[index], -1, 0)


class MlpBlock(nn.Module):
    """An MLP: a dense layer, an activation, an optional norm, and a second dense layer."""

    hidden: int
    activation: str
    dtype: str
    inner_norm: nn.Module | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        kwargs = {
            "dtype": self.dtype,
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(stddev=1e-6),
            "precision": precision(self.dtype),
        }
        hidden = ACTIVATIONS[self.activation](nn.Dense(self.hidden, **kwargs)(x))
        if self.inner_norm is not None:
            hidden = self.inner_norm(hidden)
        return nn.Dense(x.shape[-1], **kwargs)(hidden)


class LayerScale(nn.Module):
    """Multiplies the output of a residual branch by a learned factor per channel (CaiT; DINOv2)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        scale = self.param("scale", nn.initializers.constant(1e-5), (x.shape[-1],))
        return x * scale.astype(x.dtype).reshape(1, 1, -1)


class Encoder1DBlock(nn.Module):
    """One transformer layer: x += attention(LN(x)), then x += MLP(LN(x))."""

    config: ViTConfig
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], capture: Collection[str], rotation: Rotation | None = None, queries=None
    ):
        c = self.config
        captured = {"residual": x}
        captured["norm"] = y = normalisation(c, tree.NORM)(x)
        relative_grid = c.grid if c.relative_positions else None
        attention_norm = normalisation(c, "attention_norm") if c.inner_norms is True else None
        mlp_norm = normalisation(c, "mlp_norm") if c.inner_norms else None
        attention = MultiHeadDotProductAttention(
            c.heads, c.head_dim, self.dtype, relative_grid, attention_norm, name=tree.ATTENTION
        )
        y, intermediates = attention(y, y, capture, rotation, queries)
        captured |= intermediates
        if c.layer_scale:
            y = LayerScale()(y)
        out = {"sa": y}
        x = out["+sa"] = x + y
        y = normalisation(c, "LayerNorm_1")(x)
        y = MlpBlock(c.mlp_dim, c.activation, self.dtype, mlp_norm, name="MlpBlock_0")(y)
        if c.layer_scale:
            y = LayerScale()(y)
        out["mlp"] = y
        x = out["+mlp"] = x + y
        return x, out | {name: captured[name] for name in capture}


class Encoder(nn.Module):
    """All transformer layers. The final LayerNorm comes last, unless it acts only on the pooled token."""

    config: ViTConfig
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], capture: Collection[str], rotation: Rotation | None = None, queries=None
    ):
        out = {}
        for layer in range(self.config.depth):
            block = Encoder1DBlock(self.config, self.dtype, name=tree.block_name(layer))
            x, out[tree.output_name(layer)] = block(x, capture, rotation, queries)
        out["pre_ln"] = x
        if self.config.final_norm and not self.config.pool_norm:
            x = normalisation(self.config, "encoder_norm")(x)
        return x, out


class MAPHead(nn.Module):
    """Attention pooling: a learned probe attends to all tokens, and an MLP follows. All computations are in float32."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        c = self.config
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (x.shape[0], 1, 1))
        heads = c.pool_heads or c.heads
        x, _ = MultiHeadDotProductAttention(heads, c.heads * c.head_dim // heads, "float32")(probe, x)
        y = normalisation(c, "LayerNorm_0")(x)
        return (x + MlpBlock(c.pool_mlp_dim or c.mlp_dim, c.activation, "float32")(y))[:, 0]
