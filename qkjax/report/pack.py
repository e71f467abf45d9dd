"""Arrays as JavaScript files: the only files that a page opened from disk may load on demand."""

import json
import zlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

COARSE, FINE = 63, 32767  # one byte and two; of the first seven bits, which look like eight and take less room
ESCAPED = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r"})
"""All that cannot stand in a string of JavaScript as it is."""


def quantised(
    values: Float[Array | np.ndarray, "*shape"], axes: tuple[int, ...], levels: int
) -> tuple[Int[Array, "*shape"], Float[Array, "..."]]:
    """Whole numbers, and the steps between them: values are about numbers * steps, wrong by half a step at most.

    Args:
      axes: axes that share a step; the largest magnitude along them is `levels` steps.
      levels: `FINE` or `COARSE`, which fit into 2 bytes and 1.

    Returns:
      The numbers, and the steps without these axes (0 where all values are 0).
    """
    steps = jnp.abs(values).max(axis=axes, keepdims=True) / levels
    numbers = jnp.where(steps > 0, jnp.rint(values / jnp.where(steps > 0, steps, 1)), 0)
    return numbers.astype(jnp.int8 if levels == COARSE else jnp.int16), jnp.squeeze(steps, axes)


def script(key: str, facts: Mapping, arrays: Mapping[str, np.ndarray]) -> str:
    """A script that hands facts and arrays to the page under a key.

    It has three lines: the key; facts, which are what JSON can hold, and name, type and shape of each array; all
    arrays (little-endian, in order) in one zlib stream, see `ascii_of`.
    """
    arrays = {name: np.asarray(x, np.asarray(x).dtype.newbyteorder("<")) for name, x in arrays.items()}
    stream = zlib.compress(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays.values()), 9)
    listed = [[name, x.dtype.name, list(x.shape)] for name, x in arrays.items()]
    what = json.dumps({"facts": dict(facts), "arrays": listed}, allow_nan=False)
    return f'qkjax.take({json.dumps(key)},\n{what},\n"{ascii_of(stream).translate(ESCAPED)}");\n'


def ascii_of(data: bytes) -> str:
    """Bytes as characters of ASCII with seven bits each: the most that a script holds whatever encoding a server says
    that it has, and 12% less than base64."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    sevens = np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7)
    return (np.packbits(sevens, axis=1) >> 1).tobytes().decode("ascii")
