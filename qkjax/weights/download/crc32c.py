"""Computes CRC-32C, the checksum of files in Google's storage. Python's `zlib.crc32` uses another polynomial."""

from functools import cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # the polynomial, with its bits in reversed order
LANES, WORDS = 4096, 128  # a block has LANES parts of WORDS 16-bit words, which are processed in parallel
BLOCK = LANES * WORDS * 2


class Crc32c:
    """A CRC-32C checksum with the interface of hashlib. Except for tiny pieces, it processes over 100 MB/s."""

    def __init__(self):
        self._state = 0xFFFFFFFF

    def update(self, data: bytes) -> None:
        """Appends bytes."""
        for start in range(0, len(data), BLOCK):
            self._state = _advance(self._state, data[start : start + BLOCK])

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""
        return f"{self._state ^ 0xFFFFFFFF:08x}"


def _advance(state: int, data: bytes) -> int:
    """The state after `data`, which has at most BLOCK bytes.

    The checksum is linear, which has three consequences. Starting from a state equals starting from zero if the state
    is combined with the first four bytes of the data. Zeros before the data change nothing. The checksums of the parts
    of a block can be combined.
    """
    if len(data) < 4:
        for byte in data:
            state = (state >> 8) ^ int(_word_table()[(state ^ byte) << 8 & 0xFFFF])
        return state
    block = np.zeros(BLOCK, np.uint8)
    part = block[BLOCK - len(data) :]
    part[:] = np.frombuffer(data, np.uint8)
    part[:4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    states = np.zeros(LANES, np.uint32)
    for words in np.ascontiguousarray(block.view("<u2").reshape(LANES, WORDS).T):
        states = _word_table()[(states ^ words) & 0xFFFF] ^ (states >> 16)
    for table in _merge_tables():
        left = states[::2].copy().view(np.uint8).reshape(-1, 4)
        states = np.bitwise_xor.reduce([table[k, left[:, k]] for k in range(4)]) ^ states[1::2]
    return int(states[0])


@cache
def _word_table() -> np.ndarray:
    """The state after each possible 16-bit word. The entries at byte << 8 are the states after single bytes."""
    table = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


@cache
def _merge_tables() -> list[np.ndarray]:
    """For each halving of the lanes, a table [4 256]: the effect of each byte of a state after the next lane."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(WORDS):
        bits = _word_table()[bits & 0xFFFF] ^ (bits >> 16)
    tables = []
    for _ in range(LANES.bit_length() - 1):
        table = np.zeros((4, 256), np.uint32)
        for k in range(32):
            table[k // 8] ^= np.where(np.arange(256) >> k % 8 & 1, bits[k], np.uint32(0)).astype(np.uint32)
        tables.append(table)
        pieces = bits.view(np.uint8).reshape(32, 4)
        bits = np.bitwise_xor.reduce([table[k, pieces[:, k]] for k in range(4)])
    return tables
