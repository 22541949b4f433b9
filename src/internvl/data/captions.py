"""Several captions of one picture in one packed sequence that holds the picture once.

A group is a common prefix (picture and question) followed by branches (captions). Every branch sees
the prefix and itself, its positions continue the prefix's, and so it is exactly the sequence it would
be alone. With five captions of 15 tokens after a prefix of 110, this costs 185 tokens instead of 625.
Knows token ids; no template, no model, no pixels.
Shape letters: T packed tokens, S slots, A answer tokens, N tiles, P patches, C vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from internvl.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Token ids of a common prefix and of the branches that continue it."""

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prefix or not self.branches or not all(self.branches):
            raise InputError("a group needs a prefix and at least one branch, none of them empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionBatch:
    """Packed groups. Answer token `targets_A[i]` is predicted at packed position `sources_A[i]`."""

    ids_T: Tensor
    pos_T: Tensor
    slots_S: Tensor
    sources_A: Tensor
    targets_A: Tensor
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    """(prefix length, branch lengths) of each group, in packed order."""
    features_NPC: Tensor
    """The tower's patch features of the pictures, one tile each, class token left out."""


def pack_groups(groups: Sequence[Group], context_id: int, features_NPC: Tensor) -> CaptionBatch:
    """Lays groups end to end. `context_id` marks the slots; their number is checked by the model.

    The first token of a branch is predicted by the last token of the prefix; the last token of a
    branch predicts nothing, so it is left out of the packed ids.
    """
    ids: list[int] = []
    pos: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    lengths = []
    for group in groups:
        start, common = len(ids), len(group.prefix)
        ids += group.prefix
        pos += range(common)
        for branch in group.branches:
            first = len(ids)
            sources += [start + common - 1, *range(first, first + len(branch) - 1)]
            targets += branch
            ids += branch[:-1]
            pos += range(common, common + len(branch) - 1)
        lengths.append((common, tuple(len(branch) - 1 for branch in group.branches)))
    ids_T = torch.tensor(ids)
    return CaptionBatch(
        ids_T=ids_T,
        pos_T=torch.tensor(pos),
        slots_S=(ids_T == context_id).nonzero()[:, 0],
        sources_A=torch.tensor(sources),
        targets_A=torch.tensor(targets),
        groups=tuple(lengths),
        features_NPC=features_NPC,
    )
