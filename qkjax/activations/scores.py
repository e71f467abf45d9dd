"""Computes, from query and key maps, scores of how much an image excites a mode, as in the authors' code.

Letters: B images, P patches, H heads, R rank.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Map = Float[Array, "batch patches *modes"]
Score = Float[Array, "batch *modes"]

TOP = 5


def mean_of_top(values: Map) -> Score:
    """The mean of the five largest values over the patches, or of all values if there are fewer than five patches.

    Each of up to five passes removes all occurrences of the largest remaining value. On CPUs, this method is several
    times faster than sorting.
    """
    count = min(TOP, values.shape[1])
    remaining = jnp.full_like(values[:, 0], count)
    total = jnp.zeros_like(values[:, 0])
    for _ in range(count):
        largest = values.max(axis=1)
        is_largest = values == largest[:, None]
        occurrences = jnp.minimum(is_largest.sum(axis=1).astype(values.dtype), remaining)
        total += jnp.where((occurrences > 0) | jnp.isnan(largest), largest * occurrences, 0)
        remaining -= occurrences
        values = jnp.where(is_largest, -jnp.inf, values)
    return total / count


SCORES = {
    "product": lambda query, key: query.max(axis=1) * key.max(axis=1),
    "query_max": lambda query, key: query.max(axis=1),
    "key_max": lambda query, key: key.max(axis=1),
    "query_top5": lambda query, key: mean_of_top(query),
    "key_top5": lambda query, key: mean_of_top(key),
    "query_mean": lambda query, key: query.mean(axis=1),
    "key_mean": lambda query, key: key.mean(axis=1),
}
"""A dict of scores of an image. Each score is a function of the image's query map and key map over the patches.
"product" multiplies the maxima of the two maps, which may be at different patches. "product" is the default of the
authors' code and the score in the paper. "product" is also large if both maxima are negative, which means that the
image excites the opposite sign of the mode."""


def both_signs(name: str, query: Map, key: Map) -> Float[Array, "batch *modes 2"]:
    """The scores for the two signs of a mode, (u, v) and (-u, -v), which are the same mode as the sign is arbitrary.

    Scores that are NaN or infinite become inf, so that their images rank first and cannot be overlooked.
    """
    score = SCORES[name]
    both = jnp.stack([score(query, key), score(-query, -key)], axis=-1)
    return jnp.where(jnp.isfinite(both), both, jnp.inf)
