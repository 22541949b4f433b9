"""The attention of groups against `Packed` on the same sequences taken apart."""

from __future__ import annotations

import torch

from internvl.models.attention import Packed
from internvl.training.shared_prefix import SharedPrefix

GROUPS = ((3, (2, 0, 4)), (5, (1,)), (2, ()))


def test_every_branch_sees_the_prefix_and_itself() -> None:
    size = sum(common + sum(branches) for common, branches in GROUPS)
    q_THD, k_TKD, v_TKD = torch.randn(size, 4, 8), torch.randn(size, 2, 8), torch.randn(size, 2, 8)
    out_THD = SharedPrefix(GROUPS)(0, q_THD, k_TKD, v_TKD)
    start = 0
    for common, branches in GROUPS:
        first = start + common
        for branch in branches or (0,):
            rows = [*range(start, start + common), *range(first, first + branch)]
            alone_THD = Packed([len(rows)])(0, q_THD[rows], k_TKD[rows], v_TKD[rows])
            torch.testing.assert_close(out_THD[rows], alone_THD, rtol=1e-5, atol=1e-6)
            first += branch
        start = first


def test_lengths_are_those_of_the_sequences_alone() -> None:
    expected = [7, 7, 7, 5, 5, 7, 7, 7, 7, 6, 6, 6, 6, 6, 6, 2, 2]
    assert SharedPrefix(GROUPS).lengths_T.tolist() == expected
