"""Tensors of tiles as pictures: keys, dtypes, shapes."""

from __future__ import annotations

import pytest
import torch

from internvl.compat.named import Named
from internvl.compat.pixels import count_tiles, split_pictures, split_tiles
from internvl.errors import ImageError


def test_keys_are_made_of_bytes() -> None:
    tiles = torch.randn(4, 3, 28, 28)
    first, second = split_pictures(tiles, [1, 3])
    again, other = split_pictures(tiles.clone(), [1, 3])
    assert (first.key, second.key) == (again.key, other.key)
    changed = tiles.clone()
    changed[0, 0, 0, 0] += 1e-3
    assert split_pictures(changed, [1, 3])[0].key != first.key
    assert split_pictures(changed, [1, 3])[1].key == second.key
    assert len({first.key, second.key, split_pictures(tiles[:1].half(), [1])[0].key}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_stay(dtype: torch.dtype) -> None:
    tiles = torch.randn(2, 3, 28, 28).to(dtype)
    (picture,) = split_pictures(tiles.requires_grad_(), [2])
    assert picture.tiles_N3HW.dtype == torch.float32
    assert torch.equal(picture.tiles_N3HW, tiles.detach().float())
    assert picture.num_tiles == 2


def test_tiles_of_questions() -> None:
    tiles = torch.arange(3).view(3, 1, 1, 1)
    first, second, third = split_tiles(tiles, [2, 0, 1])
    assert first.flatten().tolist() == [0, 1]
    assert second is None
    assert third.flatten().tolist() == [2]
    assert split_tiles(None, [0, 0]) == [None, None]


def test_shapes() -> None:
    assert count_tiles(None) == 0
    assert count_tiles(torch.zeros(2, 3, 28, 28)) == 2
    for wrong in (torch.zeros(3, 28, 28), torch.zeros(1, 2, 3, 28, 28), "photo.jpg"):
        with pytest.raises(ImageError, match="must be a tensor"):
            count_tiles(wrong)


def test_named_results() -> None:
    found = Named(input_ids=torch.ones(1, 2, dtype=torch.long), mask=None)
    assert found.input_ids is found["input_ids"]
    assert found.to(torch.bfloat16).input_ids.dtype == torch.long
    with pytest.raises(AttributeError, match="no 'pixels' here, only input_ids, mask"):
        _ = found.pixels
