"""Arrays as JavaScript files, the only files that a page opened from disk can load on demand."""

import json
import zlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

COARSE, FINE = (
    63,
    32767,
)  # levels in one byte and in two; one byte has only 7 bits, which look the same and need less space
ESCAPED = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r"})
"""Characters that must be escaped in a JavaScript string."""


def quantised(
    values: Float[Array | np.ndarray, "*shape"], axes: tuple[int, ...], levels: int
) -> tuple[Int[Array, "*shape"], Float[Array, "..."]]:
    """Quantises values to numbers * steps, with errors of at most half a step.

    Args:
      values: the values.
      axes: axes that share a step; the largest magnitude along them is `levels` steps.
      levels: `FINE`, which fits into 2 bytes, or `COARSE`, which fits into 1.

    Returns:
      The whole numbers, and the steps without these axes (0 if all values are 0).
    """
    steps = jnp.abs(values).max(axis=axes, keepdims=True) / levels
    numbers = jnp.where(steps > 0, jnp.rint(values / jnp.where(steps > 0, steps, 1)), 0)
    return numbers.astype(jnp.int8 if levels == COARSE else jnp.int16), jnp.squeeze(steps, axes)


def script(key: str, facts: Mapping, arrays: Mapping[str, np.ndarray]) -> str:
    """A script that passes facts and arrays to the page under a key.

    It has three lines: the key; a JSON object with the facts and with name, type and shape of each array; and all
    arrays (little-endian, in order) in one zlib stream, see `ascii_of`.
    """
    arrays = {name: np.asarray(x, np.asarray(x).dtype.newbyteorder("<")) for name, x in arrays.items()}
    stream = zlib.compress(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays.values()), 9)
    listed = [[name, x.dtype.name, list(x.shape)] for name, x in arrays.items()]
    what = json.dumps({"facts": dict(facts), "arrays": listed}, allow_nan=False)
    return f'qkjax.take({json.dumps(key)},\n{what},\n"{ascii_of(stream).translate(ESCAPED)}");\n'


def ascii_of(data: bytes) -> str:
    """Bytes as ASCII characters of seven bits each, which every encoding of a script preserves; 12% smaller than
    base64."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    sevens = np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7)
    return (np.packbits(sevens, axis=1) >> 1).tobytes().decode("ascii")
