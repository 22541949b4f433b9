"""What the machine gives at this moment, and the least time that work takes there (docs/performance.md).

Products of many rows: operations / F, with F the rate of multiply-adds in registers, or / I, with I that of
products of bytes, for the formats that are multiplied in integers. A token: the bytes of all weights / B,
with B the rate of reading memory. Attention is in float32.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

from internvl.ops.native import library
from runtimes.sides import Format

SETTLE = 0.3
"""Seconds: threads of some runtimes keep spinning for a while behind a call."""
BLOCK_WEIGHTS, HEAD_WEIGHTS = 357.8e6, 135.9e6
"""Of the language model of InternVL2.5-1B."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Operations and bytes a second."""

    flops: float
    byte_products: float
    reads: float


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of linear layers and of attention, and how often the language model's weights are read."""

    linear: float = 0
    attention: float = 0
    reads: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.attention + other.attention, self.reads + other.reads)

    def floor(self, format: Format, limits: Limits) -> float:
        """Seconds."""
        rate = limits.byte_products if format.is_integer else limits.flops
        weights = BLOCK_WEIGHTS * format.block_bytes + HEAD_WEIGHTS * format.head_bytes
        return self.linear / rate + self.attention / limits.flops + self.reads * weights / limits.reads


def vision(tiles: int) -> Work:
    return Work(linear=622.8e9 * tiles, attention=103.1e9 * tiles)


def prefill(tokens: int) -> Work:
    """The head for the last position only, the lower half of attention only."""
    return Work(linear=2 * (BLOCK_WEIGHTS * tokens + HEAD_WEIGHTS), attention=24 * 2 * tokens**2 * 896)


def decode(tokens: int) -> Work:
    return Work(reads=tokens)


def measure() -> Limits:
    native = library()
    if native is None:
        raise SystemExit("the limits need the kernels: install with a C++ compiler")
    for rate in (native.multiply_add_rate, native.byte_product_rate, native.read_rate):
        rate.restype = ctypes.c_double
    time.sleep(SETTLE)
    flops, byte_products = (
        rate(ctypes.c_double(0.1)) for rate in (native.multiply_add_rate, native.byte_product_rate)
    )
    return Limits(flops, byte_products, native.read_rate(ctypes.c_int64(1 << 28), ctypes.c_int64(3)))
