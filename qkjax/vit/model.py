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
from qkjax.vit import posemb, tree
from qkjax.vit.config import ViTConfig
from qkjax.vit.layers import Encoder, MAPHead, precision

CAPTURES = ("norm", "query", "key", "attention_logits", "attention", "residual")
"""What each layer can hand out, see `forward`."""


class ViT(nn.Module):
    """A ViT whose tree is that of `big_vision.models.vit.Model`, plus what `ViTConfig` says beyond it.

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
        x = self._with_prefix(x)
        if c.pre_norm:
            x = nn.LayerNorm(epsilon=c.norm_eps, name="pre_norm")(x)
        x, out["encoder"] = Encoder(c, self.dtype, name=tree.ENCODER)(x, capture)
        out["encoded"] = tokens = x
        patches = tokens[:, c.prefix_tokens :].reshape(batch, rows, columns, -1)
        x = self._pool(tokens)
        if c.pool_norm:
            norm = nn.LayerNorm(epsilon=c.norm_eps, name="pool_norm")
            x, patches = norm(x), norm(patches)
        if c.pool != "none":
            out["head_input"] = x
        if c.rep_size:
            dense = self._dense(c.rep_size, "pre_logits")
            x, patches = nn.tanh(dense(x)), nn.tanh(dense(patches))
        out |= {"pre_logits": x, "pre_logits_2d": patches}
        if c.classes:
            head = self._dense(c.classes, "head")
            x = out["logits"] = head(x)
            out["logits_2d"] = head(patches)
            if c.distilled:
                x = out["logits"] = (x + self._dense(c.classes, "head_dist")(tokens[:, 1])) / 2
        return x, out

    def _dense(self, features, name):
        zeros = nn.initializers.zeros if name.startswith("head") else nn.initializers.lecun_normal()
        return nn.Dense(features, name=name, kernel_init=zeros, precision=jax.lax.Precision.HIGHEST)

    def _patches(self, images):
        size = self.config.patch_size
        kwargs = {"dtype": self.dtype, "precision": precision(self.dtype)}
        conv = nn.Conv(self.config.width, size, size, "VALID", name=tree.PATCH_EMBEDDING, **kwargs)
        return conv(jnp.asarray(images, self.dtype))

    def _positions(self, grid, dtype):
        c = self.config
        if c.posemb == "none":
            return jnp.zeros((1, 1, 1), dtype)
        if c.posemb == "sincos2d":
            return jnp.asarray(posemb.sincos_2d(grid, c.width), dtype)
        shape = (1, c.grid[0] * c.grid[1], c.width)
        table = self.param(tree.POSITION_EMBEDDING, nn.initializers.normal(stddev=1 / np.sqrt(c.width)), shape)
        table = posemb.resample(jnp.asarray(table, jnp.float32), c.grid, grid, c.posemb_resample)
        return table.astype(dtype)

    def _with_prefix(self, x):
        """Class token, then registers, then patches; position embeddings are on the patches alone."""
        c, prefix = self.config, []
        if c.class_token:
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


def patch_grid(config: ViTConfig, pixels: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the patches of an image of (height, width) pixels; what fills no patch is dropped.

    Raises:
      QkjaxError: smaller than a patch, or not the one grid that relative position biases are for.
    """
    rows, columns = (n // p for n, p in zip(pixels, config.patch_size, strict=True))
    if min(rows, columns) < 1:
        raise QkjaxError(f"images of {tuple(pixels)} pixels are smaller than a patch of {config.patch_size}")
    if config.relative_positions and (rows, columns) != config.grid:
        raise QkjaxError(f"this ViT's relative position biases are for {config.grid} patches, got {(rows, columns)}")
    return rows, columns


@partial(jax.jit, static_argnames=("model", "capture"))
def _forward(model: ViT, params, images, capture: tuple[str, ...]):
    output, out = model.apply({"params": params}, images, capture=capture)
    return output, {"encoded": out["encoded"]} | {name: tree.stacked_outputs(out, name) for name in capture}


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
      QkjaxError: an unknown name in `capture`, images smaller than a patch, or not of the one grid that
        relative position biases are for.
    """
    if unknown := set(capture) - set(CAPTURES):
        raise QkjaxError(f"cannot capture {', '.join(sorted(unknown))}: the names are {', '.join(CAPTURES)}")
    patch_grid(model.config, images.shape[1:3])
    return _forward(model, params, images, tuple(capture))
