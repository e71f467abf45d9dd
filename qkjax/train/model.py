"""A ViT's parameters with constrained interactions, and the plain tree that they stand for.

The training tree is big_vision's, but for the query and key kernels: in their place each layer has the
parameters of its constraint, under "interaction". `plain` computes the kernels, so that the model itself,
the export and the analysis are those of any ViT.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from qkjax.train.constraints import Shape, constraint, target
from qkjax.train.nearest import nearest_parameters
from qkjax.vit.config import ViTConfig
from qkjax.vit.model import ViT

ATTENTION = "MultiHeadDotProductAttention_0"
FACTORED = ("orthogonal", "flat")  # those whose kernels need a QR


def drawn(key: jax.Array, config: ViTConfig) -> dict:
    """A plain tree as big_vision draws it."""
    image = jnp.zeros((1, *_pixels(config), config.channels))
    return jax.jit(ViT(config).init)(key, image)["params"]


def initial(
    key: jax.Array, config: ViTConfig, names: tuple[str, ...], start: Mapping | None = None, bias: bool = False
) -> dict:
    """A training tree.

    Args:
      key: for what is drawn.
      names: of each layer's constraint.
      start: a plain tree to start from: kernels become the nearest that satisfy the constraint. By
        default everything is drawn as big_vision does, and kernels as `Constraint.init` says.
      bias: queries and keys have biases. Without them (the default) a head attends by M alone; a bias
        of the queries would make some keys attractive to all, which no constraint on M rules out.

    Raises:
      QkjaxError: an unknown constraint, or one that a head has too few columns for.
    """
    keys = jax.random.split(key, config.depth + 1)
    tree = drawn(keys[0], config) if start is None else start
    blocks = dict(tree["Transformer"])
    shape = _shape(config)
    for layer, name in enumerate(names):
        block = dict(blocks[f"encoderblock_{layer}"])
        attention = {part: dict(values) for part, values in block[ATTENTION].items()}
        query, key_ = (attention[part].pop("kernel") for part in ("query", "key"))
        if start is None:
            attention["interaction"] = constraint(name).init(keys[layer + 1], shape)
        else:
            attention["interaction"] = nearest_parameters(name, np.asarray(query), np.asarray(key_))
        if not bias:
            del attention["query"], attention["key"]
        blocks[f"encoderblock_{layer}"] = {**block, ATTENTION: attention}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {**tree, "Transformer": blocks})


def plain(params: Mapping, config: ViTConfig, names: tuple[str, ...]) -> dict:
    """The plain tree of a training tree; differentiable.

    Args:
      names: of each layer's constraint.
    """
    blocks = dict(params["Transformer"])
    shape, zeros = _shape(config), {"bias": jnp.zeros((config.heads, config.head_dim))}
    for layer, (query, key) in _kernels(params, names, shape).items():
        block = blocks[f"encoderblock_{layer}"]
        attention = dict(block[ATTENTION])
        del attention["interaction"]
        for part, kernel in (("query", query), ("key", key)):
            attention[part] = {**attention.get(part, zeros), "kernel": kernel}
        blocks[f"encoderblock_{layer}"] = {**block, ATTENTION: attention}
    return {**params, "Transformer": blocks}


def _kernels(params: Mapping, names: tuple[str, ...], shape: Shape) -> dict[int, tuple[jax.Array, jax.Array]]:
    """Query and key kernel of each layer; layers of one constraint are computed together."""
    found, before = {}, None
    for name in dict.fromkeys(names):
        layers = [layer for layer, other in enumerate(names) if other == name]
        own = [params["Transformer"][f"encoderblock_{layer}"][ATTENTION]["interaction"] for layer in layers]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
        if name in FACTORED:
            # One QR after the other: two that could run at once can deadlock XLA on CPUs with few cores.
            stacked = stacked if before is None else jax.lax.optimization_barrier((stacked, before))[0]
        kernels = constraint(name).kernels
        query, key = jax.vmap(lambda parameters, kernels=kernels: kernels(parameters, shape))(stacked)
        before = (query, key) if name in FACTORED else before
        found |= {layer: (query[i], key[i]) for i, layer in enumerate(layers)}
    return found


def frozen_layers(names: tuple[str, ...]) -> set[str]:
    """The blocks whose interaction is not trained."""
    return {f"encoderblock_{layer}" for layer, name in enumerate(names) if name == "frozen"}


def needs_lapack(names: tuple[str, ...]) -> bool:
    """Whether a step factors matrices."""
    return any(name in FACTORED or target(name) is not None for name in names)


def count(params: Mapping, names: tuple[str, ...]) -> int:
    """How many numbers of a training tree are learned."""
    blocks = [params["Transformer"][block] for block in frozen_layers(names)]
    still = [block[ATTENTION]["interaction"] for block in blocks]
    return _size(params) - _size(still)


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def matched(config: ViTConfig, names: tuple[str, ...], bias: bool) -> ViTConfig:
    """The ViT with MLPs as wide as it takes to learn as many numbers as without constraints, to the nearest unit."""

    def learned(names: tuple[str, ...]) -> int:
        return count(jax.eval_shape(lambda: initial(jax.random.key(0), config, names, bias=bias)), names)

    unit = config.depth * (2 * config.width + 1)  # a column of one dense layer with its bias, a row of the other
    return replace(config, mlp_dim=config.mlp_dim + round((learned(("free",) * config.depth) - learned(names)) / unit))


def _shape(config: ViTConfig) -> Shape:
    return config.width, config.heads, config.head_dim


def _pixels(config: ViTConfig) -> tuple[int, int]:
    rows, columns = config.grid or (1, 1)
    return rows * config.patch_size[0], columns * config.patch_size[1]
