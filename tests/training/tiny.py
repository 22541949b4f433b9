"""Two groups of captions, packed."""

from __future__ import annotations

import torch

from internvl.data.captions import CaptionBatch, Group, pack_groups

CONTEXT = 7
GROUPS = (
    Group(prefix=(1, *[CONTEXT] * 4, 9, 3), branches=((11, 12, 2), (13, 2), (14, 15, 16, 17, 2))),
    Group(prefix=(1, *[CONTEXT] * 4, 5), branches=((21, 22, 23, 2), (2,))),
)


def batch(step: int = 0) -> CaptionBatch:
    features = torch.randn(len(GROUPS), 16, 24, generator=torch.Generator().manual_seed(step))
    return pack_groups(GROUPS, CONTEXT, features)
