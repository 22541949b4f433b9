"""Examples laid end to end, written out by hand."""

from __future__ import annotations

import torch

from internvl.data.batch import pack
from internvl.data.example import Branch, Example

SIZE = 4
SHARED = Example(
    key="shared",
    prefix=(10, 11, 12),
    branches=(Branch((20, 21, 22), (True, False, True), reference=-1.5), Branch((30, 31), (True, True))),
    slots=(1,),
    tiles_N3HW=torch.ones(1, 3, SIZE, SIZE),
)
SINGLE = Example(key="single", prefix=(40,), branches=(Branch((41,), (True,)),))


def test_branches_continue_their_prefix() -> None:
    batch = pack([SINGLE, SHARED], SIZE)
    assert batch.ids_T.tolist() == [40, 10, 11, 12, 20, 21, 30]
    assert batch.pos_T.tolist() == [0, 0, 1, 2, 3, 4, 3]
    assert batch.groups == ((1, (0,)), (3, (2, 1)))
    assert batch.slots_S.tolist() == [2]
    assert batch.keys == ("single", "shared")


def test_every_trained_token_is_predicted_by_the_one_before_it() -> None:
    batch = pack([SINGLE, SHARED], SIZE)
    rows = zip(batch.sources_A.tolist(), batch.targets_A.tolist(), batch.branches_A.tolist(), strict=True)
    assert list(rows) == [(0, 41, 0), (3, 20, 1), (5, 22, 1), (3, 30, 2), (6, 31, 2)]
    assert batch.num_branches == 3
    assert batch.reference_B.isnan().tolist() == [True, False, True]
    assert batch.reference_B[1] == -1.5


def test_text_alone_has_no_tiles() -> None:
    batch = pack([SINGLE], SIZE)
    assert batch.tiles_N3HW.shape == (0, 3, SIZE, SIZE)
    assert batch.slots_S.dtype == torch.long
    assert len(batch.slots_S) == 0


def test_moving_keeps_what_is_no_tensor() -> None:
    moved = pack([SHARED], SIZE).to(torch.device("meta"))
    assert moved.ids_T.device.type == moved.tiles_N3HW.device.type == "meta"
    assert (moved.keys, moved.features_NPC) == (("shared",), None)
