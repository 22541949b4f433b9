"""Sizes of examples, and what is no example."""

from __future__ import annotations

import pytest
import torch

from internvl.data.example import Branch, Example, Size
from internvl.errors import InputError

BRANCH = Branch((3, 4), (False, True))


def test_a_size_counts_every_branch() -> None:
    example = Example(key="k", prefix=(1, 2, 5), branches=(BRANCH, Branch((6,), (True,))))
    assert example.size == Size(tokens=6, tiles=0, trained=2)
    pictured = Example(key="k", prefix=(1,), branches=(BRANCH,), tiles_N3HW=torch.zeros(2, 3, 4, 4))
    assert pictured.size == Size(tokens=3, tiles=2, trained=1)


@pytest.mark.parametrize(
    ("size", "fits"), [(Size(8, 2), True), (Size(9, 2), False), (Size(8, 3), False), (Size(0, 0, 99), True)]
)
def test_room_is_for_tokens_and_tiles(size: Size, fits: bool) -> None:
    assert size.fits(Size(8, 2)) is fits


def test_what_is_no_example() -> None:
    with pytest.raises(InputError, match="2 tokens with 1 marks"):
        Branch((1, 2), (True,))
    with pytest.raises(InputError, match="0 tokens"):
        Branch((), ())
    for parts in ({"prefix": (), "branches": (BRANCH,)}, {"prefix": (1,), "branches": ()}):
        with pytest.raises(InputError, match="row:3: an example needs a prefix"):
            Example(key="row:3", **parts)  # type: ignore[arg-type]
