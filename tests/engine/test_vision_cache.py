"""The vision cache: encoded once, right order, bounded bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from internvl.engine.vision_cache import VisionCache
from internvl.errors import InputError


class Encoder:
    """Stands for the tower: two vision tokens a tile, each the tile's mean."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, tiles: Tensor) -> Tensor:
        self.batches.append(len(tiles))
        return tiles.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 2, 4)


def picture(value: float, num_tiles: int = 1) -> Tensor:
    return torch.full((num_tiles, 3, 2, 2), float(value))


def test_each_picture_is_encoded_once_and_order_is_kept() -> None:
    encoder = Encoder()
    cache = VisionCache(encoder)
    first = cache.vision_tokens([b"a", b"b", b"a"], [picture(1, 2), picture(2), picture(1, 2)])
    assert encoder.batches == [3]
    assert [part.shape[0] for part in first] == [4, 2, 4]
    assert [part[0, 0].item() for part in first] == [1, 2, 1]
    again = cache.vision_tokens([b"b", b"c"], [picture(2), picture(3)])
    assert encoder.batches == [3, 1]
    assert [part[0, 0].item() for part in again] == [2, 3]
    assert (cache.num_hits, cache.num_misses) == (1, 3)


def test_least_recently_used_goes_first() -> None:
    encoder = Encoder()
    one = 2 * 4 * 4  # tokens x width x float32
    cache = VisionCache(encoder, max_bytes=2 * one)
    cache.vision_tokens([b"a", b"b"], [picture(1), picture(2)])
    cache.vision_tokens([b"a"], [picture(1)])
    cache.vision_tokens([b"c"], [picture(3)])
    assert cache.num_bytes == 2 * one
    encoder.batches.clear()
    cache.vision_tokens([b"a", b"c"], [picture(1), picture(3)])
    assert encoder.batches == []
    cache.vision_tokens([b"b"], [picture(2)])
    assert encoder.batches == [1]


def test_nothing_is_kept_beyond_the_limit_but_answers_are_right() -> None:
    encoder = Encoder()
    cache = VisionCache(encoder, max_bytes=0)
    for _ in range(2):
        assert cache.vision_tokens([b"a"], [picture(5)])[0][0, 0].item() == 5
    assert encoder.batches == [1, 1]
    assert cache.num_bytes == 0


def test_clear() -> None:
    encoder = Encoder()
    cache = VisionCache(encoder)
    cache.vision_tokens([b"a"], [picture(1)])
    cache.clear()
    cache.vision_tokens([b"a"], [picture(1)])
    assert encoder.batches == [1, 1]


def test_refuses_negative_limits() -> None:
    with pytest.raises(InputError, match="-1"):
        VisionCache(Encoder(), max_bytes=-1)
