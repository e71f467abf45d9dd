"""The vision transformer in Flax Linen, with big_vision's parameter tree.

Letters: B images, N tokens, D width, H heads, d head_dim, L layers. The model returns its
intermediates; nothing hooks into it.
"""

from collections.abc import Collection
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.vit import posemb
from qkjax.vit.config import ViTConfig

CAPTURES = ("norm", "query", "key", "attention_logits", "attention", "residual")
"""What each layer can hand out, see `forward`."""


def _precision(dtype: str) -> jax.lax.Precision | None:
    """float32 means float32: without this, GPUs and TPUs round the factors of a product."""
    return None if dtype == "bfloat16" else jax.lax.Precision.HIGHEST


class MultiHeadDotProductAttention(nn.Module):
    """Attention whose queries, keys, logits and weights can be looked at.

    Logits are always computed in full and the softmax in float32: fused attention would hide them.
    """

    heads: int
    head_dim: int
    dtype: str

    @nn.compact
    def __call__(self, queries_from: Float[Array, "B M D"], keys_from: Float[Array, "B N D"]):
        kwargs = {
            "dtype": self.dtype,
            "kernel_init": nn.initializers.xavier_uniform(),
            "precision": _precision(self.dtype),
        }
        project = partial(nn.DenseGeneral, features=(self.heads, self.head_dim), axis=-1, **kwargs)
        query = project(name="query")(queries_from)
        key = project(name="key")(keys_from)
        value = project(name="value")(keys_from)
        product = partial(jnp.einsum, precision=_precision(self.dtype))
        logits = product(
            "bqhd,bkhd->bhqk",
            query / np.sqrt(self.head_dim).astype(self.dtype),
            key,
            preferred_element_type=jnp.float32,
        )
        weights = nn.softmax(logits, axis=-1)
        mixed = product("bhqk,bkhd->bqhd", weights.astype(self.dtype), value)
        out = nn.DenseGeneral(queries_from.shape[-1], axis=(-2, -1), name="out", **kwargs)(mixed)
        return out, {"query": query, "key": key, "attention_logits": logits, "attention": weights}


class MlpBlock(nn.Module):
    """Dense, GELU, Dense."""

    hidden: int
    gelu: str
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        kwargs = {
            "dtype": self.dtype,
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(stddev=1e-6),
            "precision": _precision(self.dtype),
        }
        hidden = nn.gelu(nn.Dense(self.hidden, **kwargs)(x), approximate=self.gelu == "tanh")
        return nn.Dense(x.shape[-1], **kwargs)(hidden)


class LayerScale(nn.Module):
    """A learned factor per channel at the end of a residual branch (CaiT; DINOv2)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        scale = self.param("scale", nn.initializers.constant(1e-5), (x.shape[-1],))
        return x * scale.astype(x.dtype).reshape(1, 1, -1)


class Encoder1DBlock(nn.Module):
    """One layer: x += attention(LN(x)); x += MLP(LN(x))."""

    config: ViTConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], capture: Collection[str]):
        c = self.config
        seen = {"residual": x}
        seen["norm"] = y = nn.LayerNorm(epsilon=c.norm_eps)(x)
        y, inside = MultiHeadDotProductAttention(c.heads, c.head_dim, self.dtype)(y, y)
        seen |= inside
        if c.layer_scale:
            y = LayerScale()(y)
        out = {"sa": y}
        x = out["+sa"] = x + y
        y = nn.LayerNorm(epsilon=c.norm_eps)(x)
        y = MlpBlock(c.mlp_dim, c.gelu, self.dtype)(y)
        if c.layer_scale:
            y = LayerScale()(y)
        out["mlp"] = y
        x = out["+mlp"] = x + y
        return x, out | {name: seen[name] for name in capture}


class Encoder(nn.Module):
    """All layers and the last LayerNorm."""

    config: ViTConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], capture: Collection[str]):
        out = {}
        for layer in range(self.config.depth):
            block = Encoder1DBlock(self.config, self.dtype, name=f"encoderblock_{layer}")
            x, out[f"block{layer:02d}"] = block(x, capture)
        out["pre_ln"] = x
        return nn.LayerNorm(epsilon=self.config.norm_eps, name="encoder_norm")(x), out


class MAPHead(nn.Module):
    """Attention pooling: a learned probe attends to all tokens, then an MLP; float32 throughout."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        c = self.config
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (x.shape[0], 1, 1))
        x, _ = MultiHeadDotProductAttention(c.heads, c.head_dim, "float32")(probe, x)
        y = nn.LayerNorm(epsilon=c.norm_eps)(x)
        return (x + MlpBlock(c.mlp_dim, c.gelu, "float32")(y))[:, 0]


class ViT(nn.Module):
    """A ViT whose tree is that of `big_vision.models.vit.Model`, plus layer scale and registers.

    Attributes:
      config: the architecture.
      dtype: "float32" or "bfloat16", type of the matrix products; parameters keep their own.
    """

    config: ViTConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array | np.ndarray, "B height width channels"], *, capture: Collection[str] = ()):
        """Returns (logits or representation, intermediates).

        Args:
          images: preprocessed, channels last. Rows and columns that fill no patch are dropped.
          capture: names out of `CAPTURES` to add to each layer's intermediates.

        Returns:
          The output, and a nested dict with big_vision's names: "stem", "with_posemb",
          "encoder" -> "block00" -> "sa", "+sa", "mlp", "+mlp"; "encoded", "head_input",
          "pre_logits", "pre_logits_2d", "logits", "logits_2d".
        """
        c, out = self.config, {}
        x = out["stem"] = self._patches(images)
        batch, rows, columns, _ = x.shape
        x = out["with_posemb"] = x.reshape(batch, rows * columns, -1) + self._positions((rows, columns), x.dtype)
        x, out["encoder"] = Encoder(c, self.dtype, name="Transformer")(self._with_prefix(x), capture)
        out["encoded"] = x
        patches = x[:, c.prefix_tokens :].reshape(batch, rows, columns, -1)
        x = self._pool(x)
        if c.pool != "none":
            out["head_input"] = x
        if c.rep_size:
            dense = nn.Dense(c.rep_size, name="pre_logits", precision=jax.lax.Precision.HIGHEST)
            x, patches = nn.tanh(dense(x)), nn.tanh(dense(patches))
        out |= {"pre_logits": x, "pre_logits_2d": patches}
        if c.classes:
            head = nn.Dense(
                c.classes, name="head", kernel_init=nn.initializers.zeros, precision=jax.lax.Precision.HIGHEST
            )
            x = out["logits"] = head(x)
            out["logits_2d"] = head(patches)
        return x, out

    def _patches(self, images):
        size = self.config.patch_size
        conv = nn.Conv(
            self.config.width, size, size, "VALID", name="embedding", dtype=self.dtype, precision=_precision(self.dtype)
        )
        return conv(jnp.asarray(images, self.dtype))

    def _positions(self, grid, dtype):
        c = self.config
        if c.posemb == "sincos2d":
            return jnp.asarray(posemb.sincos_2d(grid, c.width), dtype)
        shape = (1, c.grid[0] * c.grid[1], c.width)
        table = self.param("pos_embedding", nn.initializers.normal(stddev=1 / np.sqrt(c.width)), shape)
        table = posemb.resample(jnp.asarray(table, jnp.float32), c.grid, grid, c.posemb_resample)
        return table.astype(dtype)

    def _with_prefix(self, x):
        """Class token, then registers, then patches; position embeddings are on the patches alone."""
        c, prefix = self.config, []
        if c.pool == "tok":
            prefix.append(self.param("cls", nn.initializers.zeros, (1, 1, c.width)))
        if c.registers:
            prefix.append(self.param("registers", nn.initializers.normal(1e-6), (1, c.registers, c.width)))
        return jnp.concatenate([jnp.tile(p.astype(x.dtype), (x.shape[0], 1, 1)) for p in prefix] + [x], axis=1)

    def _pool(self, x):
        match self.config.pool:
            case "tok" | "0":
                return x[:, 0]
            case "gap":
                return jnp.mean(x[:, self.config.prefix_tokens :], axis=1)
            case "map":
                return MAPHead(self.config, name="MAPHead_0")(x)
            case "none":
                return x


@partial(jax.jit, static_argnames=("model", "capture"))
def _forward(model: ViT, params, images, capture: tuple[str, ...]):
    output, out = model.apply({"params": params}, images, capture=capture)
    blocks = out["encoder"]
    layers = [blocks[f"block{layer:02d}"] for layer in range(model.config.depth)]
    return output, {"encoded": out["encoded"]} | {name: jnp.stack([b[name] for b in layers]) for name in capture}


def forward(
    model: ViT, params, images: Float[Array | np.ndarray, "B height width channels"], capture: Collection[str] = ()
) -> tuple[Array, dict[str, Array]]:
    """One jitted forward pass that returns only what was asked for.

    Args:
      model: the module; its `dtype` says float32 or bfloat16 products.
      params: its parameters, as `load` gives them.
      images: preprocessed, channels last, any size from one patch up.
      capture: any of
        "norm" (L, B, N, D): LayerNorm output that feeds the queries and keys;
        "query", "key" (L, B, N, H, d): with their biases, not scaled;
        "attention_logits" (L, B, H, N, N): query . key / sqrt(d), float32;
        "attention" (L, B, H, N, N): softmax of the logits over keys;
        "residual" (L, B, N, D): the residual stream that enters the layer.

    Returns:
      The logits (or the representation, without a head), and a dict of the captured arrays
      together with "encoded" (B, N, D), the tokens after the last LayerNorm.

    Raises:
      QkjaxError: an unknown name in `capture`, or images smaller than a patch.
    """
    if unknown := set(capture) - set(CAPTURES):
        raise QkjaxError(f"cannot capture {', '.join(sorted(unknown))}: the names are {', '.join(CAPTURES)}")
    if images.shape[1] < model.config.patch_size[0] or images.shape[2] < model.config.patch_size[1]:
        raise QkjaxError(f"images of {images.shape[1:3]} pixels are smaller than a patch of {model.config.patch_size}")
    return _forward(model, params, images, tuple(capture))
