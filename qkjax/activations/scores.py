"""How much an image excites a mode: scores of its query and key maps, as in the authors' code.

Letters: B images, P patches, H heads, R rank.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Map = Float[Array, "batch patches *modes"]
Score = Float[Array, "batch *modes"]

TOP = 5


def mean_of_top(values: Map) -> Score:
    """Mean of the five largest over the patches (of all where there are fewer).

    Five passes that each take out the largest value, as often as it occurs: on CPUs several times
    faster than sorting.
    """
    wanted = min(TOP, values.shape[1])
    left = jnp.full_like(values[:, 0], wanted)
    total = jnp.zeros_like(values[:, 0])
    for _ in range(wanted):
        largest = values.max(axis=1)
        is_largest = values == largest[:, None]
        taken = jnp.minimum(is_largest.sum(axis=1).astype(values.dtype), left)
        total += jnp.where(taken > 0, largest * taken, 0)
        left -= taken
        values = jnp.where(is_largest, -jnp.inf, values)
    return total / wanted


SCORES = {
    "product": lambda query, key: query.max(axis=1) * key.max(axis=1),
    "query_max": lambda query, key: query.max(axis=1),
    "key_max": lambda query, key: key.max(axis=1),
    "query_top5": lambda query, key: mean_of_top(query),
    "key_top5": lambda query, key: mean_of_top(key),
    "query_mean": lambda query, key: query.mean(axis=1),
    "key_mean": lambda query, key: key.mean(axis=1),
}
"""From the query and the key map over the patches. "product", the authors' default and the paper's
score, takes the two maxima independently, wherever they are. It is also large where both are
negative; the image then excites the other sign of the mode."""


def both_signs(name: str, query: Map, key: Map) -> Float[Array, "batch *modes 2"]:
    """A score for (u, v) and for (-u, -v), which are the same mode: its sign is arbitrary."""
    score = SCORES[name]
    return jnp.stack([score(query, key), score(-query, -key)], axis=-1)
