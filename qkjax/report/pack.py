"""Arrays as JavaScript files: what a page opened from disk may load as it goes (it may not fetch anything else)."""

import base64
import json
import zlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

COARSE, FINE = 63, 32767  # one byte and two; of the first seven bits, which look like eight and take less room


def quantised(
    values: Float[Array | np.ndarray, "*shape"], axes: tuple[int, ...], levels: int
) -> tuple[Int[Array, "*shape"], Float[Array, "..."]]:
    """Whole numbers, and the steps between them: values are about numbers * steps, wrong by half a step at most.

    Args:
      axes: over which a step is shared; the largest size among them is so many `levels`.
      levels: `FINE` or `COARSE`, which fit into 2 bytes and 1.

    Returns:
      The numbers, and the steps without these axes (0 where all values are 0).
    """
    steps = jnp.abs(values).max(axis=axes, keepdims=True) / levels
    numbers = jnp.where(steps > 0, jnp.rint(values / jnp.where(steps > 0, steps, 1)), 0)
    return numbers.astype(jnp.int8 if levels == COARSE else jnp.int16), jnp.squeeze(steps, axes)


def script(key: str, facts: Mapping, arrays: Mapping[str, np.ndarray]) -> str:
    """A script that hands facts and arrays to the page under a key.

    The arrays (little-endian, in order) lie in one zlib stream, in base64: the least that every browser can read from
    a file opened from disk. Facts are what JSON can hold.
    """
    arrays = {name: np.asarray(x, np.asarray(x).dtype.newbyteorder("<")) for name, x in arrays.items()}
    stream = zlib.compress(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays.values()), 9)
    packed = {
        "facts": dict(facts),
        "arrays": [[name, x.dtype.name, list(x.shape)] for name, x in arrays.items()],
        "stream": base64.b64encode(stream).decode(),
    }
    return f"qkjax.take({json.dumps(key)}, {json.dumps(packed, allow_nan=False)});\n"
