"""Packing of groups."""

from __future__ import annotations

import pytest
import torch

from internvl.data.captions import Group, pack_groups
from internvl.errors import InputError


def test_positions_sources_and_targets() -> None:
    groups = [Group(prefix=(1, 7, 3), branches=((11, 12, 2), (2,))), Group(prefix=(7,), branches=((5, 2),))]
    batch = pack_groups(groups, 7, torch.zeros(2, 1, 1))
    assert batch.ids_T.tolist() == [1, 7, 3, 11, 12, 7, 5]
    assert batch.pos_T.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert batch.slots_S.tolist() == [1, 5]
    assert batch.sources_A.tolist() == [2, 3, 4, 2, 5, 6]
    assert batch.targets_A.tolist() == [11, 12, 2, 2, 5, 2]
    assert batch.groups == ((3, (2, 0)), (1, (1,)))


@pytest.mark.parametrize(("prefix", "branches"), [((), ((1,),)), ((1,), ()), ((1,), ((1,), ()))])
def test_empty_groups_are_refused(prefix: tuple[int, ...], branches: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match="group needs"):
        Group(prefix=prefix, branches=branches)
