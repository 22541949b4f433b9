"""Pixel unshuffle: which pixel ends where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from internvl.config import ProjectorConfig
from internvl.errors import InputError
from internvl.models.projector import Projector, unshuffle


def numbered(side: int) -> Tensor:
    """Patch (row, column) holds the two channels [row, column]."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack((rows, columns), dim=-1).reshape(1, side * side, 2).float()


@pytest.mark.parametrize("order", ["v1", "v2"])
def test_unshuffle_order(order: str) -> None:
    out = unshuffle(numbered(6), ProjectorConfig(shuffle=order))
    assert out.shape == (1, 9, 8)
    for token in range(9):
        row, column = divmod(token, 3) if order == "v2" else divmod(token, 3)[::-1]
        square = [[2 * row + a, 2 * column + b] for a in (0, 1) for b in (0, 1)]
        assert out[0, token].tolist() == [value for pixel in square for value in pixel]


def test_no_unshuffle_keeps_patches() -> None:
    patches = numbered(3)
    assert unshuffle(patches, ProjectorConfig(shuffle=None)) is patches


@pytest.mark.parametrize("num_patches", [9, 12])
def test_refuses_grids_that_do_not_divide(num_patches: int) -> None:
    with pytest.raises(InputError, match=f"{num_patches} patches"):
        unshuffle(torch.zeros(1, num_patches, 2), ProjectorConfig())


def test_projector_shapes_with_and_without_norm() -> None:
    assert Projector(ProjectorConfig(), 6, 10)(torch.randn(2, 16, 6)).shape == (2, 4, 10)
    llava = Projector(ProjectorConfig(shuffle=None, norm=False), 6, 10)
    assert {name for name, _ in llava.named_parameters()} == {
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    }
    assert llava(torch.randn(2, 16, 6)).shape == (2, 16, 10)
