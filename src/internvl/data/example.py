"""A training example as token ids: a common prefix, branches that continue it, and pictures.

A conversation is a prefix (all up to its first answer) and one branch. Several captions of one picture,
several questions about it, or the chosen and the rejected answer of a pair are branches of one prefix, so the
picture is encoded and read once. Knows token ids and tiles; no template, no files, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from internvl.errors import InputError


class Size(NamedTuple):
    """What a record takes: tokens of its prefix and all its branches, tiles, tokens that are trained on."""

    tokens: int
    tiles: int = 0
    trained: int = 0

    def fits(self, room: Size) -> bool:
        """Whether there is room for its tokens and its tiles."""
        return self.tokens <= room.tokens and self.tiles <= room.tiles


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens after the prefix, and which of them are trained on. `reference`: the summed log-probability of
    its trained tokens under the reference model of preference optimisation, where stored."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    reference: float | None = None

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.trained):
            raise InputError(f"a branch of {len(self.ids)} tokens with {len(self.trained)} marks")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """`key` names the record in reports. `slots` are positions that vision tokens fill: in the prefix, or in
    the prefix and its branch where there is only one. `is_preference`: the branches are a chosen answer and a
    rejected one."""

    key: str
    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]
    is_preference: bool = False
    slots: tuple[int, ...] = ()
    tiles_N3HW: Tensor | None = None
    image_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prefix or not self.branches:
            raise InputError(f"{self.key}: an example needs a prefix and at least one branch")

    @property
    def size(self) -> Size:
        num_tiles = 0 if self.tiles_N3HW is None else len(self.tiles_N3HW)
        return size_of(self.prefix, self.branches, num_tiles)


def size_of(prefix: Sequence[int], branches: Sequence[Branch], num_tiles: int) -> Size:
    """The size of an example of these parts."""
    return Size(
        tokens=len(prefix) + sum(len(branch.ids) for branch in branches),
        tiles=num_tiles,
        trained=sum(sum(branch.trained) for branch in branches),
    )
