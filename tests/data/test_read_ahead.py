"""What is read ahead comes in order, is bounded, and never waits for good."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest
import torch

from internvl.data.example import Branch, Example, Size
from internvl.data.mixture import Pick
from internvl.data.places import Place
from internvl.data.read_ahead import ReadAhead
from internvl.errors import ImageError


def places(*tiles: int) -> list[Place]:
    return [
        Place(position=number, attempt=0, pick=Pick(0, number, 0, number), size=Size(4, count))
        for number, count in enumerate(tiles)
    ]


class Begun:
    """Makes examples and knows which were asked for."""

    def __init__(self) -> None:
        self.tiles: list[int] = []
        self._lock = Lock()

    def __call__(self, place: Place) -> Example:
        tiles = 0 if place.size is None else place.size.tiles
        with self._lock:
            self.tiles.append(max(1, tiles))
        if tiles == 7:
            raise ImageError("cut off")
        branches = (Branch((1,), (True,)),)
        return Example(
            key=str(place.position), prefix=(1,), branches=branches, tiles_N3HW=torch.zeros(tiles, 3, 1, 1)
        )


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("limit", [1, 5, 100])
def test_order_and_bound(workers: int, limit: int) -> None:
    """One of 12 tiles passes alone; texts count as one tile."""
    counts = [2, 0, 3, 12, 1, 0, 0, 0, 0, 0, 4, 5, 6, 12, 12, 1] * 4
    make, taken = Begun(), 0
    with ThreadPoolExecutor(workers) as pool:
        ahead = ReadAhead(make, pool, limit)
        ahead.put(places(*counts[:20]))
        ahead.put(places(*counts)[20:])
        for number, count in enumerate(counts):
            assert sum(make.tiles) - taken <= max(limit, max(1, count))
            assert ahead.take().key == str(number)
            taken += max(1, count)
    assert len(make.tiles) == len(counts)


def test_what_cannot_be_made_gives_its_room_back() -> None:
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(Begun(), pool, 7)
        ahead.put(places(7, 7, 7, 2))
        for _ in range(3):
            with pytest.raises(ImageError):
                ahead.take()
        assert ahead.take().key == "3"


def test_as_much_is_begun_as_there_is_room_for() -> None:
    make = Begun()
    with ThreadPoolExecutor(2) as pool:
        ReadAhead(make, pool, 6).put(places(2, 2, 2, 1, 1))
    assert sorted(make.tiles) == [2, 2, 2]
