"""Keys and values in pages, and the `attend` of a step that mixes prefill chunks and decoding.

The arithmetic is that of `models.attention.KVCache`. Pages that follow each other are read where they lie,
so a sequence in one run costs no copy. Knows page numbers; not whose they are, nor why.
Shape letters: T packed tokens, H heads, K key-value heads, S cache positions, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from internvl.config import TextConfig
from internvl.models.attention import Looks
from internvl.ops.causal_attention import causal_attention
from internvl.ops.decoder_step import Cells, Places

LARGEST = 127

Runs = list[tuple[int, int]]
"""Cache positions of a sequence, in its order: first and end (excluded) of each run."""


class Store(Protocol):
    """One tensor a layer, (K, S, D), written by position and read by runs."""

    def write(self, layer: int, where_T: Tensor, x_KTD: Tensor) -> None: ...
    def read(self, layer: int, runs: Runs) -> Tensor: ...
    def cells(self) -> list[Cells]: ...


class DenseStore:
    """Values as they come."""

    def __init__(self, config: TextConfig, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_kv_heads, positions, config.head_dim)
        self.layers = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def write(self, layer: int, where_T: Tensor, x_KTD: Tensor) -> None:
        self.layers[layer].index_copy_(1, where_T, x_KTD)

    def read(self, layer: int, runs: Runs) -> Tensor:
        return _read(self.layers[layer], runs)

    def cells(self) -> list[Cells]:
        return [Cells(values) for values in self.layers]


class Int8Store:
    """int8 values with a scale for each head and position: the largest of its D values becomes 127."""

    def __init__(self, config: TextConfig, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.values = DenseStore(config, positions, torch.int8, device)
        self.scales = DenseStore(replace(config, head_dim=1), positions, dtype, device)

    def write(self, layer: int, where_T: Tensor, x_KTD: Tensor) -> None:
        largest_KT1 = x_KTD.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x_KTD.dtype).tiny)
        self.values.write(layer, where_T, (x_KTD * (LARGEST / largest_KT1)).round().to(torch.int8))
        self.scales.write(layer, where_T, largest_KT1 / LARGEST)

    def read(self, layer: int, runs: Runs) -> Tensor:
        return self.values.read(layer, runs).to(self.dtype) * self.scales.read(layer, runs)

    def cells(self) -> list[Cells]:
        return [Cells(*both) for both in zip(self.values.layers, self.scales.layers, strict=True)]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one sequence in a step: `count` from position `start` on, over pages `pages`.

    `prompt_length` decides the rotation, in models where the length of a sequence does.
    """

    pages: Sequence[int]
    start: int
    count: int
    prompt_length: int


class PagedCache:
    """`num_pages` pages of `page_size` positions, in all layers."""

    def __init__(
        self,
        config: TextConfig,
        num_pages: int,
        page_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        is_int8: bool = False,
    ) -> None:
        self.page_size, self.device = page_size, device
        make: Callable[..., Store] = Int8Store if is_int8 else DenseStore
        self.shape = (config.num_kv_heads, num_pages * page_size, config.head_dim)
        self.keys, self.values = (make(config, num_pages * page_size, dtype, device) for _ in range(2))
        self.view: object = None  # of models.fused_step

    def cells(self) -> tuple[list[Cells], list[Cells]]:
        """Keys and values of all layers."""
        return self.keys.cells(), self.values.cells()

    def step(self, parts: Sequence[Part]) -> PagedStep:
        """The `attend` of one forward pass over the tokens of all parts, laid end to end."""
        return PagedStep(self, parts)

    def places(self, parts: Sequence[Part]) -> tuple[Places, Tensor]:
        """For parts of one token: where the sequences lie, and the lengths that rotations go by."""
        starts_B = torch.tensor([part.start for part in parts])
        width = max(len(part.pages) for part in parts)
        pages_BL = torch.tensor([[*part.pages, *[0] * (width - len(part.pages))] for part in parts])
        lengths_B = (starts_B + 1).maximum(torch.tensor([part.prompt_length for part in parts]))
        _, positions, head_dim = self.shape
        places = Places(starts_B, pages_BL, self.page_size, self.page_size * head_dim, positions * head_dim)
        return places, lengths_B


class PagedStep:
    """Writes the new keys into their pages, then looks at old and new.

    `pos_T` are the positions of the tokens in their sequences. `lengths_T` are those that a sequence had when
    it was computed token by token: the prompt's for its own tokens, for each later one up to itself. So a
    sequence that is computed anew gets what it had.
    """

    def __init__(self, cache: PagedCache, parts: Sequence[Part]) -> None:
        self.cache, self.parts = cache, parts
        self.looks: Looks | None = None
        device, size = cache.device, cache.page_size
        spans = [torch.arange(part.start, part.start + part.count) for part in parts]
        lengths = [(span + 1).clamp(min=part.prompt_length) for span, part in zip(spans, parts, strict=True)]
        where = [
            torch.tensor(part.pages)[span // size] * size + span % size
            for span, part in zip(spans, parts, strict=True)
        ]
        self.pos_T, self.lengths_T = torch.cat(spans).to(device), torch.cat(lengths).to(device)
        self.where_T = torch.cat(where).to(device)
        self.runs = [find_runs(part.pages, size, part.start + part.count) for part in parts]

    def __call__(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        keys, values = self.cache.keys, self.cache.values
        keys.write(layer, self.where_T, k_TKD.transpose(0, 1))
        values.write(layer, self.where_T, v_TKD.transpose(0, 1))
        outs, first = [], 0
        for part, runs in zip(self.parts, self.runs, strict=True):
            last = first + part.count
            outs.append(causal_attention(q_THD[first:last], keys.read(layer, runs), values.read(layer, runs)))
            first = last
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def find_runs(pages: Sequence[int], page_size: int, length: int) -> Runs:
    """Where the first `length` positions of a sequence lie; pages that follow each other are one run."""
    runs: Runs = []
    for index in range(-(-length // page_size)):
        first = pages[index] * page_size
        end = first + min(page_size, length - index * page_size)
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return runs


def _read(store_KSD: Tensor, runs: Runs) -> Tensor:
    parts = [store_KSD[:, first:end] for first, end in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
