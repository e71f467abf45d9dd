"""The parameters of a ViT with constrained interactions, and the plain tree that they represent.

The training tree is that of big_vision, except that each layer has the parameters of its constraint, under
"interaction", in place of its query and key kernels. `plain` computes the kernels, so the model, the export and the
analyses are those of any ViT.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from qkjax.train.constraints.record import Shape
from qkjax.train.constraints.registry import constraint
from qkjax.train.nearest import nearest_parameters
from qkjax.vit.config import ViTConfig
from qkjax.vit.model import ViT
from qkjax.vit.tree import attention_parameters, map_attention

INTERACTION = "interaction"


def draw_plain(key: jax.Array, config: ViTConfig) -> dict:
    """A plain tree with big_vision's random initialisation."""
    image = jnp.zeros((1, *_pixels(config), config.channels))
    return jax.jit(ViT(config).init)(key, image)["params"]


def initial(
    key: jax.Array, config: ViTConfig, names: tuple[str, ...], start: Mapping | None = None, bias: bool = False
) -> dict:
    """A training tree.

    Args:
      key: random key.
      config: the ViT.
      names: name of each layer's constraint.
      start: a plain tree to start from; its kernels are replaced by the nearest ones that satisfy the constraint. By
        default all parameters are random, with big_vision's initialisation, and `Constraint.init` for queries and keys.
      bias: whether queries and keys have biases. Without them (the default), attention depends on M alone. A query bias
        makes some keys attractive to all queries, which no constraint on M prevents.

    Raises:
      QkjaxError: a constraint is unknown, or its argument is too large for the heads.
    """
    keys = jax.random.split(key, config.depth + 1)
    tree = draw_plain(keys[0], config) if start is None else start

    def constrain(layer: int, attention: Mapping) -> Mapping:
        attention = {part: dict(values) for part, values in attention.items()}
        query, key = (attention[part].pop("kernel") for part in ("query", "key"))
        if start is None:
            own = constraint(names[layer], config.head_dim)
            attention[INTERACTION] = own.init(keys[layer + 1], _shape(config))
        else:
            attention[INTERACTION] = nearest_parameters(names[layer], np.asarray(query), np.asarray(key))
        if not bias:
            del attention["query"], attention["key"]
        return attention

    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), map_attention(tree, constrain))


def plain(params: Mapping, config: ViTConfig, names: tuple[str, ...]) -> dict:
    """The plain tree of a training tree; differentiable.

    Args:
      params: a training tree.
      config: the ViT.
      names: name of each layer's constraint.
    """
    kernels = _kernels(params, names, _shape(config))
    zeros = {"bias": jnp.zeros((config.heads, config.head_dim))}

    def compute(layer: int, attention: Mapping) -> Mapping:
        attention = {part: values for part, values in attention.items() if part != INTERACTION}
        for part, kernel in zip(("query", "key"), kernels[layer], strict=True):
            attention[part] = {**attention.get(part, zeros), "kernel": kernel}
        return attention

    return map_attention(params, compute)


def _kernels(params: Mapping, names: tuple[str, ...], shape: Shape) -> dict[int, tuple[jax.Array, jax.Array]]:
    """Query and key kernel of each layer; layers with the same constraint are computed together."""
    attention, result, before = list(attention_parameters(params)), {}, None
    for name in dict.fromkeys(names):
        own = constraint(name)
        layers = [layer for layer, other in enumerate(names) if other == name]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(attention[layer][INTERACTION] for layer in layers))
        if own.factored:
            # One QR after the other: two concurrent ones can deadlock XLA on CPUs with few cores.
            stacked = stacked if before is None else jax.lax.optimization_barrier((stacked, before))[0]
        query, key = jax.vmap(lambda parameters, own=own: own.kernels(parameters, shape))(stacked)
        before = (query, key) if own.factored else before
        result |= {layer: (query[i], key[i]) for i, layer in enumerate(layers)}
    return result


def needs_lapack(names: tuple[str, ...]) -> bool:
    """Whether a step factorises matrices."""
    return any(own.factored or own.target is not None for own in map(constraint, names))


def count(params: Mapping, names: tuple[str, ...]) -> int:
    """The number of trained values in a training tree."""
    attention = zip(names, attention_parameters(params), strict=True)
    untrained = [parts[INTERACTION] for name, parts in attention if not constraint(name).trained]
    return _size(params) - _size(untrained)


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def matched(config: ViTConfig, names: tuple[str, ...], bias: bool) -> ViTConfig:
    """The ViT with MLPs widened to match the number of trained values without constraints, to the nearest unit."""

    def trained(names: tuple[str, ...]) -> int:
        return count(jax.eval_shape(lambda: initial(jax.random.key(0), config, names, bias=bias)), names)

    unit = config.depth * (2 * config.width + 1)  # a column of one dense layer with its bias, a row of the other
    return replace(config, mlp_dim=config.mlp_dim + round((trained(("free",) * config.depth) - trained(names)) / unit))


def _shape(config: ViTConfig) -> Shape:
    return config.width, config.heads, config.head_dim


def _pixels(config: ViTConfig) -> tuple[int, int]:
    rows, columns = config.grid or (1, 1)
    return rows * config.patch_size[0], columns * config.patch_size[1]
