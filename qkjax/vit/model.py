"""Defines the vision transformer in Flax Linen, with big_vision's parameter tree.

Letters: B images, N tokens, D embedding, H heads, d head_dim, L layers. The model returns its intermediate arrays, so
  no hooks are needed.
"""

from collections.abc import Collection
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.errors import QkjaxError
from qkjax.vit import posemb, tree
from qkjax.vit.config import ViTConfig
from qkjax.vit.layers import Encoder, MAPHead, normalisation
from qkjax.vit.rotary import patch_rotation, with_class_angles

CAPTURES = ("norm", "query", "key", "rotated_query", "rotated_key", "attention_logits", "attention", "residual")
"""Intermediates that each layer can return; see `forward`."""


class ViT(nn.Module):
    """A ViT with the parameter tree of `big_vision.models.vit.Model`, plus parameters for optional parts.

    Attributes:
      config: the architecture.
      dtype: floating-point format of the matrix products, "float32" or "bfloat16"; parameters keep their own dtype.

    Example:
      >>> import jax, numpy as np
      >>> import qkjax
      >>> config = qkjax.ViTConfig(width=24, depth=2, heads=2, head_dim=12, mlp_dim=48, patch_size=(8, 8), grid=(4, 4))
      >>> images = np.zeros((1, 32, 32, 3), np.float32)
      >>> params = qkjax.ViT(config).init(jax.random.key(0), images)["params"]
      >>> output, _ = qkjax.ViT(config).apply({"params": params}, images)
      >>> output.shape
      (1, 24)
    """

    config: ViTConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "B height width channels"],
        *,
        capture: Collection[str] = (),
        queries: Int[Array | np.ndarray, "Q"] | None = None,
    ):
        """Runs the forward pass.

        Args:
          images: preprocessed images, channels last. The model ignores rows and columns beyond the last whole patch.
          capture: names, from `CAPTURES`, of arrays to add to the intermediates of each layer.
          queries: indices of the query tokens whose "attention_logits" and "attention" are captured, for example
            `[0]` for the class token; None means all. With few queries, the forward pass takes less time.

        Returns:
          A tuple of the output (logits, or the representation if there is no head) and the intermediates. The
          intermediates are a nested dict with big_vision's names: "stem", "with_posemb", "encoder" -> "block00" ->
          "sa", "+sa", "mlp", "+mlp"; "encoded", "head_input", "pre_logits", "pre_logits_2d", "logits", "logits_2d".
        """
        c, out = self.config, {}
        x = out["stem"] = self._patches(images)
        batch, rows, columns, _ = x.shape
        x = x.reshape(batch, rows * columns, -1)
        if c.patch_norm:
            x = normalisation(c, "patch_norm")(x)
        x = out["with_posemb"] = x + self._positions((rows, columns), x.dtype)
        x = self._with_prefix(x)
        if c.pre_norm:
            x = normalisation(c, "pre_norm")(x)
        rotation = self._rotation((rows, columns))
        x, out["encoder"] = Encoder(c, self.dtype, name=tree.ENCODER)(x, capture, rotation, queries)
        out["encoded"] = tokens = x
        patches = tokens[:, c.prefix_tokens :].reshape(batch, rows, columns, -1)
        x = self._pool(tokens)
        if c.pool_norm:
            norm = normalisation(c, "pool_norm")
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
        # Convolutions take no `DotAlgorithmPreset`.
        full = None if self.dtype == "bfloat16" else jax.lax.Precision.HIGHEST
        kwargs = {"dtype": self.dtype, "precision": full}
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

    def _rotation(self, grid):
        """The rotation of the last tokens: the patches, and for MLCD also the class token before them."""
        c, rotation = self.config, patch_rotation(self.config, grid)
        if rotation is None or not c.rotary.class_angles:
            return rotation
        own = self.param("class_angles", nn.initializers.normal(1.0), (1, rotation.angles.shape[-1]))
        return with_class_angles(rotation, own)

    def _with_prefix(self, x):
        """Concatenates class token, registers and patches, in this order. Only patches have position embeddings."""
        c, prefix = self.config, []
        if c.class_token:
            prefix.append(self.param("cls", nn.initializers.zeros, (1, 1, c.width)))
        if c.registers:
            prefix.append(self.param("registers", nn.initializers.normal(1e-6), (1, c.registers, c.width)))
        return jnp.concatenate([jnp.tile(p.astype(x.dtype), (x.shape[0], 1, 1)) for p in prefix] + [x], axis=1)

    def _pool(self, x):
        c = self.config
        pooled = x if c.pool_prefix else x[:, c.prefix_tokens :]
        match c.pool:
            case "tok" | "0":
                return x[:, 0]
            case "gap":
                return jnp.mean(pooled, axis=1)
            case "map":
                return MAPHead(c, name="MAPHead_0")(pooled)
            case "none":
                return x


def patch_grid(config: ViTConfig, pixels: tuple[int, ...]) -> tuple[int, int]:
    """The number of rows and columns of whole patches in an image of (height, width) pixels.

    Raises:
      QkjaxError: the model cannot be run on images, the image is smaller than a patch, or the patch grid of the image
        differs from the grid of the relative position biases.
    """
    if config.weights_only:
        raise QkjaxError(
            f"this model cannot be run on images ({config.weights_only}): analyse only its weights, with qkjax.analyze"
        )
    rows, columns = (n // p for n, p in zip(pixels, config.patch_size, strict=True))
    if min(rows, columns) < 1:
        raise QkjaxError(
            f"resolution={tuple(pixels)}: expected at least one patch of {config.patch_size} pixels; pass larger images"
        )
    if config.relative_positions and (rows, columns) != config.grid:
        expected = tuple(n * p for n, p in zip(config.grid, config.patch_size, strict=True))
        raise QkjaxError(
            f"resolution={tuple(pixels)}: expected {expected}, because the relative position biases are for "
            f"{config.grid} patches, but this resolution has {(rows, columns)}"
        )
    return rows, columns


@partial(jax.jit, static_argnames=("model", "capture"))
def _forward(model: ViT, params, images, capture: tuple[str, ...]):
    output, out = model.apply({"params": params}, images, capture=capture)
    return output, {"encoded": out["encoded"]} | {name: tree.stacked_outputs(out, name) for name in capture}


def forward(
    model: ViT, params, images: Float[Array | np.ndarray, "B height width channels"], capture: Collection[str] = ()
) -> tuple[Array, dict[str, Array]]:
    """Runs one jitted forward pass; returns the output and the requested intermediates.

    Args:
      model: the Linen module. The attribute `dtype` of the module is the floating-point format of the matrix products,
        float32 or bfloat16.
      params: parameters of the model, as in `Checkpoint.params`.
      images: preprocessed images, channels last, which must contain at least one patch.
      capture: any of these names: "norm" (L, B, N, D): output of the LayerNorm before queries and keys; "query", "key"
        (L, B, N, H, d): queries and keys with biases, not divided by sqrt(d), before rotary positions; "rotated_query",
        "rotated_key" (L, B, N, H, d): queries and keys after rotary positions, which are equal to "query" and "key" if
        the model has none; "attention_logits" (L, B, H, N, N): rotated_query . rotated_key / sqrt(d), plus the relative
        position bias if the model has one, float32; "attention" (L, B, H, N, N): softmax of the logits over keys;
        "residual" (L, B, N, D): the residual stream that enters the layer.

    Returns:
      A tuple of the output and a dict. The output is the logits (B, classes), or the representation (B, D) if there is
      no head. The dict contains the captured arrays, and "encoded" (B, N, D), the tokens after the last LayerNorm.

    Raises:
      QkjaxError: a name in `capture` is unknown, the images are smaller than a patch, or the patch grid of the images
        differs from the grid of the relative position biases.

    Example:
      logits, captured = forward(ViT(checkpoint.config), checkpoint.params, images, capture=("attention",))
    """
    if unknown := set(capture) - set(CAPTURES):
        raise QkjaxError(f"capture={tuple(sorted(unknown))}: unknown names; choose from {', '.join(CAPTURES)}")
    patch_grid(model.config, images.shape[1:3])
    return _forward(model, params, images, tuple(capture))
