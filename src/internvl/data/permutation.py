"""A shuffled order that is computed, not stored: the place of one index costs a few operations and no memory.

Knows integers only.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from math import isqrt

_WORD = (1 << 64) - 1


def permuted(index: int, size: int, key: tuple[int, ...]) -> int:
    """Where `index` goes in the permutation of 0..size-1 that `key` (a seed, an epoch, ...) stands for.

    An index is a cell of a table just larger than `size`. Eight rounds move it along its row and its column
    in turn, by a hash of the other coordinate (a Feistel network); cells past `size` are moved again until
    they fall inside, which keeps the map one to one (Black and Rogaway, "Ciphers with arbitrary finite
    domains").
    """
    if not 0 <= index < size:
        raise IndexError(f"a permutation of {size} has no index {index}")
    rows = isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = _round_keys(key)
    while True:
        row, column = divmod(index, columns)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            row = (row + _mix(column ^ even)) % rows
            column = (column + _mix(row ^ odd)) % columns
        index = row * columns + column
        if index < size:
            return index


def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    """Eight 64-bit words that depend on every part of `key`, the same on every machine."""
    return struct.unpack("<8Q", blake2b(repr([int(part) for part in key]).encode()).digest())


def _mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit in changes half of the bits out."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
