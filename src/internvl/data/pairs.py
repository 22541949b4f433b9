"""A picture with a caption, and batches of them, for models that compare the two.

Each caption is there three times, as ids: to be embedded, to be matched with a picture, and to be written
after a prompt. Texts keep their own lengths: nothing is padded. Knows no tokenizer, no files and no model.
Shape letters: B pairs, P patches and class token, C vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.errors import InputError

Ids = tuple[int, ...]


class PairTexts(NamedTuple):
    """One caption as ids, first and last token of a text included. The first `prompt_length` of `caption` are
    the prompt's."""

    contrastive: Ids
    match: Ids
    caption: Ids
    prompt_length: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairExample:
    """`key` names the record in reports; pictures of equal `image_id` are the same. `draw` is a random number
    of 63 bits that belongs to this look at this record: what is drawn for the pair follows from it, whoever
    computes it and beside which others."""

    key: str
    tile_3HW: Tensor
    texts: PairTexts
    image_id: int
    draw: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch:
    """Rows of the ids belong to the pictures in order. `features_BPC` are the frozen tower's last states,
    class token included, in place of the tiles, where cached."""

    tiles_B3HW: Tensor
    contrastive_ids: tuple[Ids, ...]
    match_ids: tuple[Ids, ...]
    caption_ids: tuple[Ids, ...]
    prompt_lengths: tuple[int, ...]
    image_ids_B: Tensor
    draws_B: Tensor
    keys: tuple[str, ...]
    features_BPC: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Of the texts that are embedded."""
        return sum(map(len, self.contrastive_ids))

    @property
    def num_tiles(self) -> int:
        return len(self.tiles_B3HW)

    def to(self, device: torch.device) -> PairBatch:
        features_BPC = self.features_BPC
        return replace(
            self,
            tiles_B3HW=self.tiles_B3HW.to(device, non_blocking=True),
            image_ids_B=self.image_ids_B.to(device, non_blocking=True),
            draws_B=self.draws_B.to(device, non_blocking=True),
            features_BPC=None if features_BPC is None else features_BPC.to(device, non_blocking=True),
        )


def pair(examples: Sequence[PairExample]) -> PairBatch:
    """The batch of `examples`, in order. Raises InputError for none."""
    if not examples:
        raise InputError("a batch of pairs needs at least one")
    contrastive, match, caption, prompt_lengths = zip(*(one.texts for one in examples), strict=True)
    return PairBatch(
        tiles_B3HW=torch.stack([one.tile_3HW for one in examples]),
        contrastive_ids=contrastive,
        match_ids=match,
        caption_ids=caption,
        prompt_lengths=prompt_lengths,
        image_ids_B=torch.tensor([one.image_id for one in examples]),
        draws_B=torch.tensor([one.draw for one in examples]),
        keys=tuple(one.key for one in examples),
    )
