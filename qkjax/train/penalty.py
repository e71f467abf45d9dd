"""The penalty of soft constraints, which pulls the weighted cosine of a layer towards a target."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.interaction.modes import decompose_in_program
from qkjax.train.constraints.record import dot
from qkjax.vit.tree import attention_parameters

Kernels = Float[Array, "layers embed heads head_dim"]


def weighted_cosine(query: Kernels, key: Kernels) -> Float[Array, "layers heads"]:
    """The weighted cosine of each head, tr(M) / ||M||_nuclear for M = Wq Wk^T, in a differentiable form.

    As in `measure`, this is the mean cosine of the modes weighted by their singular values. The nuclear norm is
    computed as tr(U^T M V), where U and V are treated as constants, because the gradient of ||M||_nuclear is U V^T.
    """
    heads = (jnp.moveaxis(kernel, 2, 1) for kernel in jax.lax.stop_gradient((query, key)))
    u, _, v = jax.lax.stop_gradient(decompose_in_program(*heads))
    nuclear = dot("lhdr,ldhk,lehk,lher->lh", u, query, key, v)
    return dot("ldhk,ldhk->lh", query, key) / nuclear


def penalty(
    plain: Mapping, targets: Mapping[int, float], factor: Float[np.ndarray, "1 1 head_dim"] | None = None
) -> Float[Array, ""]:
    """The mean squared difference between the weighted cosines of layers and their targets.

    The weighted cosine of a layer is the mean over its heads.

    Args:
      plain: the plain parameter tree of a ViT.
      targets: targets by layer; layers without a target are not penalised.
      factor: factor of the columns of the kernels, if the penalty acts on Mbar; see `train.positions`.
    """
    # Because of the barrier, all kernels are computed first. Otherwise, a QR of this penalty and a QR of a constraint
    # could run at the same time, which can deadlock XLA on CPUs with few cores.
    kernels = jax.lax.optimization_barrier(
        [[parts[name]["kernel"] for name in ("query", "key")] for parts in attention_parameters(plain)]
    )
    query, key = (jnp.stack([kernels[layer][i] for layer in targets]) for i in (0, 1))
    if factor is not None:
        query, key = query * factor[None], key * factor[None]
    distance = weighted_cosine(query, key).mean(axis=-1) - jnp.asarray(list(targets.values()))
    return (distance**2).mean()
