"""Examples laid end to end: the packed tensors of one forward pass.

Every branch sees the prefix of its example and itself, and its positions continue the prefix's, so it is
exactly the sequence it would be alone (`training.shared_prefix`). Nothing is padded. Knows no template, no
model, no pixels. Shape letters: T packed tokens, S slots, A trained tokens, B branches, N tiles, P patches, C
vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from internvl.data.example import Example


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Trained token `targets_A[i]` is predicted at packed position `sources_A[i]`, for branch
    `branches_A[i]`.

    `groups`: (prefix length, packed branch lengths) of each example. `tiles_N3HW` has no tiles in a text-only
    batch; `features_NPC` are the frozen tower's patch features instead, where cached. `reference_B` is NaN
    where nothing is stored.
    """

    ids_T: Tensor
    pos_T: Tensor
    slots_S: Tensor
    sources_A: Tensor
    targets_A: Tensor
    branches_A: Tensor
    reference_B: Tensor
    tiles_N3HW: Tensor
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    keys: tuple[str, ...]
    features_NPC: Tensor | None = None

    @property
    def num_branches(self) -> int:
        return len(self.reference_B)

    @property
    def num_tokens(self) -> int:
        return len(self.ids_T)

    @property
    def num_tiles(self) -> int:
        return len(self.tiles_N3HW)

    def to(self, device: torch.device) -> Batch:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(examples: Sequence[Example], tile_size: int) -> Batch:
    """The batch of `examples`, in order; `tile_size` shapes the empty tiles of a text-only batch.

    The first token of a branch is predicted by the last one of the prefix; the last token of a branch
    predicts nothing, so it is not among the packed ids.
    """
    ids: list[int] = []
    pos: list[int] = []
    slots: list[int] = []
    trained: list[tuple[int, int, int]] = []  # source, target, branch
    groups: list[tuple[int, tuple[int, ...]]] = []
    num_branches = 0
    for example in examples:
        start, common = len(ids), len(example.prefix)
        ids += example.prefix
        pos += range(common)
        slots += [start + slot for slot in example.slots]
        for branch in example.branches:
            sources = [start + common - 1, *range(len(ids), len(ids) + len(branch.ids) - 1)]
            rows = zip(sources, branch.ids, branch.trained, strict=True)
            trained += [(source, target, num_branches) for source, target, counts in rows if counts]
            ids += branch.ids[:-1]
            pos += range(common, common + len(branch.ids) - 1)
            num_branches += 1
        groups.append((common, tuple(len(branch.ids) - 1 for branch in example.branches)))
    table_A3 = torch.tensor(trained, dtype=torch.long).view(-1, 3)
    references = [branch.reference for example in examples for branch in example.branches]
    tiles = [example.tiles_N3HW for example in examples if example.tiles_N3HW is not None]
    return Batch(
        ids_T=torch.tensor(ids),
        pos_T=torch.tensor(pos),
        slots_S=torch.tensor(slots, dtype=torch.long),
        sources_A=table_A3[:, 0],
        targets_A=table_A3[:, 1],
        branches_A=table_A3[:, 2],
        reference_B=torch.tensor([float("nan") if value is None else value for value in references]),
        tiles_N3HW=torch.cat(tiles) if tiles else torch.empty(0, 3, tile_size, tile_size),
        groups=tuple(groups),
        keys=tuple(example.key for example in examples),
    )
