"""Records of like length come together, at indices that do not depend on where a run began."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from internvl.data.grouping import STEPS_IN_WINDOW, Order
from internvl.data.mixture import Mixture
from internvl.data.places import Places
from internvl.data.spec import Batching, DataSpec
from tests.data.fakes import FakeExamples, data_set

NUMBER = 150
SIZE = 4


@pytest.fixture
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def make_order(
    readers: ThreadPoolExecutor, *, grouped: bool = True, number: int = NUMBER, size: int = SIZE
) -> Order:
    rows = [(2 + index * 37 % 101, 0, "measure" if index == 9 else "") for index in range(number)]
    spec = DataSpec(batching=Batching(examples=size), group_by_length=grouped)
    return Order(Places(Mixture([data_set(rows)]), FakeExamples(), spec, 0), readers, number)


def test_ungrouped_places_come_as_they_are(readers: ThreadPoolExecutor) -> None:
    order = make_order(readers, grouped=False)
    assert [order.place(index).position for index in range(40)] == list(range(40))


def test_an_index_has_its_place_wherever_one_begins(readers: ThreadPoolExecutor) -> None:
    whole = [place.position for place in map(make_order(readers).place, range(2 * NUMBER))]
    for start in (0, 1, 127, 128, 149, 150, 200):
        order = make_order(readers)
        assert [order.place(index).position for index in range(start, 2 * NUMBER)] == whole[start:]


def test_every_position_once_in_its_epoch_and_window(readers: ThreadPoolExecutor) -> None:
    order = make_order(readers)
    window = SIZE * STEPS_IN_WINDOW
    assert window < NUMBER < 2 * window
    for start, end in ((0, window), (window, NUMBER), (NUMBER, NUMBER + window)):
        positions = sorted(order.place(index).position for index in range(start, end))
        assert positions == list(range(start, end))


@pytest.mark.parametrize(("number", "size"), [(257, 8), (259, 8), (129, 4), (3, 8)])
def test_a_window_may_end_before_a_step_begins_in_it(
    readers: ThreadPoolExecutor, number: int, size: int
) -> None:
    order = make_order(readers, number=number, size=size)
    whole = [order.place(index).position for index in range(4 * number)]
    for start in range(0, 4 * number, number):
        assert sorted(whole[start : start + number]) == list(range(start, start + number))
        for index in {start, max(start, start + number - 4), start + number - 1}:
            assert make_order(readers, number=number, size=size).place(index).position == whole[index]


def test_steps_hold_like_lengths_and_are_shuffled(readers: ThreadPoolExecutor) -> None:
    order = make_order(readers)
    sizes = [place.size for place in map(order.place, range(SIZE * STEPS_IN_WINDOW))]
    tokens = [0 if size is None else size.tokens for size in sizes]
    steps = [tokens[first : first + SIZE] for first in range(0, len(tokens), SIZE)]
    assert max(max(step) - min(step) for step in steps) <= 8
    longest = [max(step) for step in steps]
    assert longest != sorted(longest, reverse=True)
