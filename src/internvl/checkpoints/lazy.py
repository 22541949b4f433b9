"""Tensors that are not read yet, and views of them: pieces, stacks, regrouped rows, merged factors.

Everything a layout does to a weight moves whole rows, so a lazy tensor only has to hand out rows.
Reading straight into the storage of the finished model keeps the peak at one copy of the weights.
Knows no files (see `checkpoints.read`) and no names of layouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from internvl.adapt.lora import merge

CHUNK_BYTES = 1 << 20
"""Upper bound of a temporary; converting the dtype of a large embedding must not hold it twice."""


class Lazy(Protocol):
    """A tensor whose rows (entries of dimension 0) can be read on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def origin(self) -> str:
        """Where the values come from, for messages."""
        ...

    def rows(self, out: Tensor, start: int) -> None:
        """Fill `out`, a contiguous CPU tensor of any dtype, with rows `start` onwards.

        A tensor without dimensions has one row, and `out` then has no dimensions either.
        """
        ...


def num_rows(lazy: Lazy) -> int:
    return lazy.shape[0] if lazy.shape else 1


def rows_at_once(lazy: Lazy, dtype: torch.dtype) -> int:
    """How many rows in `dtype` CHUNK_BYTES hold, at least one."""
    return max(1, CHUNK_BYTES // max(1, dtype.itemsize * math.prod(lazy.shape[1:])))


def pieces(lazy: Lazy, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Ranges of rows of at most CHUNK_BYTES in `dtype` (one row at least)."""
    total, step = num_rows(lazy), rows_at_once(lazy, dtype)
    for start in range(0, total, step):
        yield start, min(start + step, total)


def section(out: Tensor, start: int, stop: int) -> Tensor:
    return out[start:stop] if out.dim() else out


def fetch(lazy: Lazy, dtype: torch.dtype | None = None) -> Tensor:
    """The whole tensor in a dtype (its own by default), on the CPU."""
    out = torch.empty(lazy.shape, dtype=dtype or lazy.dtype)
    for start, stop in pieces(lazy, out.dtype):
        lazy.rows(section(out, start, stop), start)
    return out


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in memory."""

    tensor: Tensor
    origin: str = "memory"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def rows(self, out: Tensor, start: int) -> None:
        out.copy_(section(self.tensor.detach(), start, start + (len(out) if out.dim() else 1)))


@dataclass(frozen=True, slots=True)
class Stack:
    """Several tensors one below the other."""

    parts: Sequence[Lazy]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(num_rows(part) for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def origin(self) -> str:
        return " + ".join(part.origin for part in self.parts)

    def rows(self, out: Tensor, start: int) -> None:
        first, stop = 0, start + len(out)
        for part in self.parts:
            low, high = max(start, first), min(stop, first + num_rows(part))
            if low < high:
                part.rows(out[low - start : high - start], low - first)
            first += num_rows(part)


@dataclass(frozen=True, slots=True)
class Rows:
    """A run of rows of another tensor."""

    base: Lazy
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def origin(self) -> str:
        return f"{self.base.origin}[{self.start}:{self.stop}]"

    def rows(self, out: Tensor, start: int) -> None:
        self.base.rows(out, self.start + start)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Equal blocks of rows in another order: block j is block `order[j]` of `base`."""

    base: Lazy
    order: Sequence[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def origin(self) -> str:
        return self.base.origin

    def rows(self, out: Tensor, start: int) -> None:
        size = num_rows(self.base) // len(self.order)
        row, stop = start, start + len(out)
        while row < stop:
            block, offset = divmod(row, size)
            high = min((block + 1) * size, stop)
            self.base.rows(out[row - start : high - start], self.order[block] * size + offset)
            row = high


@dataclass(frozen=True, slots=True)
class Merged:
    """A weight with low-rank factors added: `base + scale * up @ down`, computed in float32."""

    base: Lazy
    down: Lazy
    up: Lazy
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def origin(self) -> str:
        return f"{self.base.origin} + LoRA"

    def rows(self, out: Tensor, start: int) -> None:
        weight_OI = torch.empty(out.shape, dtype=torch.float32)
        self.base.rows(weight_OI, start)
        up_OR = torch.empty((len(out), *self.up.shape[1:]), dtype=torch.float32)
        self.up.rows(up_OR, start)
        out.copy_(merge(weight_OI, fetch(self.down, torch.float32), up_OR, self.scale))
