"""Reads the arrays of a checkpoint in threads, and checks that they are finite."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from qkjax.cores import cores
from qkjax.errors import QkjaxError

BLOCK = 1 << 18  # numbers that are checked at the same time, so that intermediate results stay in the processor's cache
EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
"""Bits of the exponent, all of which are set only in NaN and infinity. For these types, numpy's own check is slow."""


def read_all(read: Callable[[str], np.ndarray], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads arrays by key, in threads.

    Args:
      read: function from a key to its array, which several threads call.
      keys: the keys, without repetition.

    Raises:
      Exception: what `read` raises; if it fails for several keys, the error of the first.
    """
    with ThreadPoolExecutor(cores()) as pool:
        futures = {key: pool.submit(read, key) for key in keys}
        try:
            return {key: future.result() for key, future in futures.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_finite(name: str, array: np.ndarray) -> np.ndarray:
    """Returns the array after checking all its numbers.

    Raises:
      QkjaxError: the array has NaN or infinite values.
    """
    flat, mask = array.ravel(order="K"), EXPONENTS.get(array.dtype)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        finite = np.isfinite(block).all() if mask is None else (block.view(np.uint16) & mask).max() < mask
        if not finite:
            raise QkjaxError(f"parameter {name!r} has NaN or infinite values; download or copy the checkpoint again")
    return array
