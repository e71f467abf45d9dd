"""A soft constraint: a penalty that pulls the weighted mean cosine of a layer to a target."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkjax.interaction.modes import decompose_head
from qkjax.train.constraints import dot
from qkjax.train.model import ATTENTION

Kernels = Float[Array, "layers embed heads head_dim"]


def weighted_cosine(query: Kernels, key: Kernels) -> Float[Array, "layers heads"]:
    """tr(M) / ||M||_nuclear of each head, M = Wq Wk^T: the mean cosine of its modes, weighted by their singular
    values, as `measure` gives it; differentiable here.

    The gradient of ||M||_nuclear is U V^T: so U and V may be taken as constants in tr(U^T M V) = sum of s.
    """
    heads = jax.vmap(jax.vmap(decompose_head, in_axes=1))
    u, _, v = jax.lax.stop_gradient(heads(*jax.lax.stop_gradient((query, key))))
    nuclear = dot("lhdr,ldhk,lehk,lher->lh", u, query, key, v)
    return dot("ldhk,ldhk->lh", query, key) / nuclear


def penalty(plain: Mapping, targets: Mapping[int, float]) -> Float[Array, ""]:
    """Mean over the layers with a target of the squared distance of the layer's weighted cosine, itself the
    mean over heads, from it.

    Args:
      plain: the plain tree of a ViT.
      targets: by layer.
    """
    # All kernels first: a QR of this penalty and one of a constraint could else run at the same time,
    # which can deadlock XLA on CPUs with few cores.
    blocks = plain["Transformer"]
    kernels = {name: [part["kernel"] for part in (block[ATTENTION]["query"], block[ATTENTION]["key"])]
               for name, block in blocks.items() if name.startswith("encoderblock_")}  # fmt: skip
    kernels = jax.lax.optimization_barrier(kernels)
    query, key = (jnp.stack([kernels[f"encoderblock_{layer}"][i] for layer in targets]) for i in (0, 1))
    distance = weighted_cosine(query, key).mean(axis=-1) - jnp.asarray(list(targets.values()))
    return (distance**2).mean()
