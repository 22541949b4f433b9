"""A batch of pairs holds its examples in order."""

from __future__ import annotations

import pytest
import torch

from internvl.data.pairs import PairExample, PairTexts, pair
from internvl.errors import InputError


def example(number: int) -> PairExample:
    """A caption of as many words as `number` says."""
    words = tuple(range(10, 10 + number))
    texts = PairTexts((1, 5, *words, 2), (1, *words, 2), (1, 6, 7, *words, 2), 3)
    return PairExample(
        key=f"k{number}",
        tile_3HW=torch.full((3, 2, 2), float(number)),
        texts=texts,
        image_id=2**62 + number,
        draw=2**61 + number,
    )


def test_everything_in_order() -> None:
    examples = [example(number) for number in (3, 1, 2)]
    batch = pair(examples)
    assert batch.tiles_B3HW[:, 0, 0, 0].tolist() == [3.0, 1.0, 2.0]
    assert batch.keys == ("k3", "k1", "k2")
    assert batch.image_ids_B.tolist() == [2**62 + 3, 2**62 + 1, 2**62 + 2]
    assert batch.draws_B.tolist() == [2**61 + 3, 2**61 + 1, 2**61 + 2]
    rows = zip(batch.contrastive_ids, batch.match_ids, batch.caption_ids, batch.prompt_lengths, strict=True)
    assert list(rows) == [tuple(one.texts) for one in examples]
    assert (batch.num_tiles, batch.num_tokens) == (3, 6 + 4 + 5)
    with pytest.raises(InputError, match="at least one"):
        pair([])


def test_tensors_move_and_the_rest_stays() -> None:
    batch = pair([example(1)]).to(torch.device("meta"))
    assert batch.tiles_B3HW.is_meta
    assert batch.image_ids_B.is_meta
    assert batch.draws_B.is_meta
    assert (batch.keys, batch.features_BPC) == (("k1",), None)
