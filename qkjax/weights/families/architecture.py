"""Infers the architecture from the shapes of the parameters, and checks that the parameters match it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import isqrt
from typing import Literal

from qkjax.errors import QkjaxError, nearest
from qkjax.vit.config import Pool, ViTConfig
from qkjax.vit.model import ViT
from qkjax.vit.tree import ATTENTION, ENCODER, block_name
from qkjax.weights.families.big_vision_names import BLOCK, depth

Shape = tuple[int, ...]
RELATIVE = f"{ATTENTION}/relative_position_bias"


def shape_of(shapes: Mapping[str, Shape], name: str, rank: int) -> Shape:
    """The shape of a parameter, which must exist and have `rank` axes, none of length 0.

    Raises:
      QkjaxError: the parameter is missing (the message suggests the nearest name), has another number of axes, or has
        no elements.
    """
    if name not in shapes:
        raise QkjaxError(f"not a supported ViT: parameter {name!r} is missing{nearest(name, shapes)}")
    if len(shapes[name]) != rank or 0 in shapes[name]:
        raise QkjaxError(f"parameter {name!r} has shape {shapes[name]}, expected {rank} axes, none of length 0")
    return shapes[name]


def infer_grid(tokens: int, grid: Shape | None) -> Shape:
    """The number of rows and columns of the learned position embedding: `grid` if it is given, otherwise a square.

    Raises:
      QkjaxError: `grid` does not match the number of tokens, or `grid` is None and the number of tokens is not a
        square.
    """
    if grid is not None:
        if grid[0] * grid[1] != tokens:
            raise QkjaxError(f"grid={grid}: pos_embedding has {tokens} tokens, expected {grid[0]} x {grid[1]}")
        return grid
    if isqrt(tokens) ** 2 != tokens:
        raise QkjaxError(f"pos_embedding has {tokens} tokens, which is not a square: pass grid=(rows, columns)")
    return isqrt(tokens), isqrt(tokens)


def has_class_row(shapes: Mapping[str, Shape], grid: Shape | None) -> bool:
    """Whether row 0 of the position embedding is the position of the class token, as in files from before 2022.

    Row 0 is that position if there is a class token, and the embedding has one row more than the grid has cells.
    """
    if "cls" not in shapes or "pos_embedding" not in shapes:
        return False
    rows = shape_of(shapes, "pos_embedding", 3)[1]
    if grid is not None:
        return rows == grid[0] * grid[1] + 1
    return rows > 1 and isqrt(rows - 1) ** 2 == rows - 1


def infer_config(shapes: Mapping[str, Shape], settings: Mapping) -> ViTConfig:
    """Infers the architecture from the shapes of parameters with canonical names.

    Shapes do not determine the LayerNorm epsilon, the activation, the resampling of position embeddings, or which of
    the poolings "gap", "none" and "0" is used. For settings that are not in `settings`, big_vision's defaults apply
    (such as "gap").

    Raises:
      QkjaxError: the model is not a plain ViT; the message names a parameter that is missing or has a wrong shape.
    """
    kernel = shape_of(shapes, "embedding/kernel", 4)
    width, heads, head_dim = shape_of(shapes, f"{BLOCK}_0/{ATTENTION}/query/kernel", 3)
    posemb, grid = _infer_positions(shapes, settings)
    inferred = ViTConfig(
        width=width,
        depth=depth(shapes),
        heads=heads,
        head_dim=head_dim,
        mlp_dim=shape_of(shapes, f"{BLOCK}_0/MlpBlock_0/Dense_0/kernel", 2)[1],
        patch_size=kernel[:2],
        channels=kernel[2],
        posemb=posemb,
        class_token="cls" in shapes,
        pool=_infer_pool(shapes),
        rep_size=shape_of(shapes, "pre_logits/kernel", 2)[1] if "pre_logits/kernel" in shapes else None,
        classes=shape_of(shapes, "head/kernel", 2)[1] if "head/kernel" in shapes else None,
        registers=shape_of(shapes, "registers", 3)[1] if "registers" in shapes else 0,
        distilled="head_dist/kernel" in shapes,
        layer_scale=f"{BLOCK}_0/LayerScale_0/scale" in shapes,
        pre_norm="pre_norm/scale" in shapes,
        pool_norm="pool_norm/scale" in shapes,
        inner_norms=_infer_inner_norms(shapes),
        **_infer_pool_head(shapes, heads),
        patch_norm="patch_norm/scale" in shapes,
        relative_positions=f"{BLOCK}_0/{RELATIVE}" in shapes,
    )
    final_norm = settings.get("final_norm", True) or "pool_norm/scale" in shapes
    config = replace(inferred, **{**settings, "grid": grid, "final_norm": final_norm})
    if config.posemb == "sincos2d" and width % 4:
        raise QkjaxError(
            f"pos_embedding is missing, and a sine-cosine embedding needs a width that is a multiple of 4, not {width}"
        )
    if config.window and (config.rotary is None or config.prefix_tokens):
        raise QkjaxError(
            f"window={config.window}: expected a model with rotary positions, and without class token and registers"
        )
    if config.pool == "tok" and not config.class_token:
        raise QkjaxError("pool is 'tok', but there is no class token: parameter 'cls' is missing")
    return config


def _infer_positions(shapes: Mapping[str, Shape], settings: Mapping) -> tuple[str, Shape | None]:
    """The kind of position embedding, and the grid of the learned embedding or of the relative position biases.

    A model with rotary positions and without a learned embedding has no position embedding.
    """
    grid = settings.get("grid")
    if "pos_embedding" in shapes:
        rows = shape_of(shapes, "pos_embedding", 3)[1]
        return "learn", infer_grid(rows - has_class_row(shapes, grid), grid)
    if relative := shapes.get(f"{BLOCK}_0/{RELATIVE}"):  # (2 rows - 1) (2 columns - 1) + 3 entries
        return "none", grid or ((isqrt(max(relative[0] - 3, 0)) + 1) // 2,) * 2
    return ("none", grid) if settings.get("rotary") else ("sincos2d", None)


def _infer_inner_norms(shapes: Mapping[str, Shape]) -> bool | Literal["mlp"]:
    if f"{BLOCK}_0/attention_norm/scale" in shapes:
        return True
    return "mlp" if f"{BLOCK}_0/mlp_norm/scale" in shapes else False


def _infer_pool_head(shapes: Mapping[str, Shape], heads: int) -> dict[str, int]:
    """The sizes of attention pooling that differ from those of the layers."""
    if "MAPHead_0/probe" not in shapes:
        return {}
    sizes = {"pool_heads": (shape_of(shapes, f"MAPHead_0/{ATTENTION}/query/kernel", 3)[1], heads),
             "pool_mlp_dim": (shape_of(shapes, "MAPHead_0/MlpBlock_0/Dense_0/kernel", 2)[1],
                              shape_of(shapes, f"{BLOCK}_0/MlpBlock_0/Dense_0/kernel", 2)[1])}  # fmt: skip
    return {name: size for name, (size, usual) in sizes.items() if size != usual}


def _infer_pool(shapes: Mapping[str, Shape]) -> Pool:
    if "MAPHead_0/probe" in shapes:
        return "map"
    return "tok" if "cls" in shapes and "pool_norm/scale" not in shapes else "gap"


@lru_cache(maxsize=16)
def expected_shapes(config: ViTConfig) -> dict[str, Shape]:
    """The names and shapes of all parameters of a ViT, according to its Linen module.

    The module is evaluated with one layer, since all layers have the same shapes; this takes a quarter of the time.
    """
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    rows, columns = config.grid or (1, 1)
    pixels = (rows * config.patch_size[0], columns * config.patch_size[1])
    image = jax.ShapeDtypeStruct((1, *pixels, config.channels), jnp.float32)
    one = replace(config, depth=1, window=0, global_layers=())  # windows do not change any shape
    tree = jax.eval_shape(ViT(one).init, jax.random.key(0), image)["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}
    first = f"{ENCODER}/{block_name(0)}/"
    layer = {name.removeprefix(first): shapes.pop(name) for name in list(shapes) if name.startswith(first)}
    blocks = [f"{ENCODER}/{block_name(number)}/" for number in range(config.depth)]
    return shapes | {block + name: shape for block in blocks for name, shape in layer.items()}


def check_shapes(shapes: Mapping[str, Shape], config: ViTConfig) -> None:
    """Checks that parameters have the shapes that the configuration requires.

    Raises:
      QkjaxError: a parameter is missing or unexpected, or has a wrong shape; the message names it and the nearest name.
    """
    if not (config.width > 0 and all(config.patch_size)):
        raise QkjaxError(
            f"not a ViT: width {config.width}, depth {config.depth}, patch size {config.patch_size}; "
            "expected positive values"
        )
    expected = expected_shapes(config)
    if missing := _first(set(expected) - set(shapes)):
        raise QkjaxError(f"parameter {missing!r} is missing{nearest(missing, set(shapes) - set(expected))}")
    if extra := _first(set(shapes) - set(expected)):
        raise QkjaxError(f"parameter {extra!r} is not part of this ViT{nearest(extra, expected)}")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise QkjaxError(f"parameter {name!r} has shape {shape}, expected {expected[name]}")


def _first(names: Iterable[str]) -> str | None:
    return min(names, default=None)
