"""Converts between the parameters of a ViT with constrained interactions and the plain parameter tree of a ViT.

The training tree is the parameter tree of big_vision, with one exception. Instead of query and key kernels, each layer
has the parameters of its constraint under "interaction". `plain` computes the kernels from these parameters, so model,
export and analyses are the same as for any ViT.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from qkjax.train.constraints.record import Shape
from qkjax.train.constraints.registry import constraint
from qkjax.train.nearest import nearest_parameters
from qkjax.train.positions import constrained_factor
from qkjax.vit.config import ViTConfig
from qkjax.vit.model import ViT
from qkjax.vit.tree import attention_parameters, map_attention

INTERACTION = "interaction"


def draw_plain(key: jax.Array, config: ViTConfig) -> dict:
    """Draws a plain parameter tree with big_vision's random initialisation."""
    image = jnp.zeros((1, *_pixels(config), config.channels))
    return jax.jit(ViT(config).init)(key, image)["params"]


def initial(
    key: jax.Array,
    config: ViTConfig,
    names: tuple[str, ...],
    start: Mapping | None = None,
    bias: bool = False,
    constrained: str = "same-place",
) -> dict:
    """Makes the initial training tree of a run.

    Args:
      key: random key.
      config: architecture of the ViT.
      names: name of each layer's constraint.
      start: a plain tree from which training starts. The tree's query and key kernels are replaced by the nearest
        kernels that satisfy the constraint. By default, all parameters are random: `Constraint.init` draws those of
        queries and keys, and big_vision's initialisation draws all others.
      bias: whether queries and keys have biases. Without biases (the default), attention depends only on M. A query
        bias makes some keys attractive to all queries, which no constraint on M prevents.
      constrained: the interaction that the constraints apply to; see `TrainConfig`.

    Raises:
      QkjaxError: a constraint is unknown, or its argument is too large for the heads.
    """
    keys, factor = jax.random.split(key, config.depth + 1), constrained_factor(config, constrained)
    tree = draw_plain(keys[0], config) if start is None else start

    def constrain(layer: int, attention: Mapping) -> Mapping:
        attention = {part: dict(values) for part, values in attention.items()}
        query, key = (attention[part].pop("kernel") for part in ("query", "key"))
        if start is None:
            own = constraint(names[layer], config.head_dim)
            attention[INTERACTION] = own.init(keys[layer + 1], _shape(config))
        else:
            query, key = (np.asarray(x) if factor is None else np.asarray(x) * factor for x in (query, key))
            attention[INTERACTION] = nearest_parameters(names[layer], query, key)
        if not bias:
            del attention["query"], attention["key"]
        return attention

    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), map_attention(tree, constrain))


def plain(params: Mapping, config: ViTConfig, names: tuple[str, ...], constrained: str = "same-place") -> dict:
    """Computes the plain parameter tree that a training tree represents. The function is differentiable.

    Args:
      params: a training tree.
      config: architecture of the ViT.
      names: name of each layer's constraint.
      constrained: the interaction that the constraints apply to; see `TrainConfig`.
    """
    kernels = _kernels(params, names, _shape(config))
    factor = constrained_factor(config, constrained)
    zeros = {"bias": jnp.zeros((config.heads, config.head_dim))}

    def compute(layer: int, attention: Mapping) -> Mapping:
        attention = {part: values for part, values in attention.items() if part != INTERACTION}
        for part, kernel in zip(("query", "key"), kernels[layer], strict=True):
            own = kernel if factor is None else kernel / factor
            attention[part] = {**attention.get(part, zeros), "kernel": own}
        return attention

    return map_attention(params, compute)


def _kernels(params: Mapping, names: tuple[str, ...], shape: Shape) -> dict[int, tuple[jax.Array, jax.Array]]:
    """Query and key kernels of each layer. Layers with the same constraint are factorised together."""
    attention, result, before = list(attention_parameters(params)), {}, None
    for name in dict.fromkeys(names):
        own = constraint(name)
        layers = [layer for layer, other in enumerate(names) if other == name]
        if not own.factored:
            result |= {layer: own.kernels(attention[layer][INTERACTION], shape) for layer in layers}
            continue
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(attention[layer][INTERACTION] for layer in layers))
        # One QR after the other: two concurrent QRs can deadlock XLA on CPUs with few cores.
        stacked = stacked if before is None else jax.lax.optimization_barrier((stacked, before))[0]
        before = query, key = jax.vmap(lambda parameters, own=own: own.kernels(parameters, shape))(stacked)
        result |= {layer: (query[i], key[i]) for i, layer in enumerate(layers)}
    return result


def needs_lapack(names: tuple[str, ...]) -> bool:
    """Whether a training step with these constraints factorises matrices (QR or SVD)."""
    return any(own.factored or own.target is not None for own in map(constraint, names))


def count(params: Mapping, names: tuple[str, ...]) -> int:
    """The number of trainable parameters in a training tree."""
    attention = zip(names, attention_parameters(params), strict=True)
    untrained = [parts[INTERACTION] for name, parts in attention if not constraint(name).trained]
    return _size(params) - _size(untrained)


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def matched(config: ViTConfig, names: tuple[str, ...], bias: bool) -> ViTConfig:
    """Widens the MLPs of a ViT so that it has as many trainable parameters as the unconstrained model.

    The hidden dimension is rounded to the nearest integer.
    """

    def trained(names: tuple[str, ...]) -> int:
        return count(jax.eval_shape(lambda: initial(jax.random.key(0), config, names, bias=bias)), names)

    unit = config.depth * (2 * config.width + 1)  # a column and its bias in one layer, and a row in the other
    return replace(config, mlp_dim=config.mlp_dim + round((trained(("free",) * config.depth) - trained(names)) / unit))


def _shape(config: ViTConfig) -> Shape:
    return config.width, config.heads, config.head_dim


def _pixels(config: ViTConfig) -> tuple[int, int]:
    rows, columns = config.grid or (1, 1)
    return rows * config.patch_size[0], columns * config.patch_size[1]
