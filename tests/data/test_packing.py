"""Planning of steps: nothing lost, no limit passed, work spread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.example import Size
from internvl.data.packing import check_fits, check_parts, cost, fill_packs, share_out, share_packs
from internvl.data.spec import Batching
from internvl.errors import InputError, TrainingError

LIMITS = {"max_tokens": 100, "max_tiles": 12}
SIZES = st.lists(st.builds(Size, st.integers(1, 100), st.integers(0, 12)), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 6))
def test_packs_hold_a_prefix_within_limits(sizes: list[Size], count: int) -> None:
    batching = Batching(packs=count, **LIMITS)
    packs = fill_packs(sizes, batching)
    used = sorted(record for pack in packs for record in pack)
    assert used == list(range(len(used)))
    for pack in packs:
        assert len(pack) >= 1
        assert sum(sizes[record].tokens for record in pack) <= 100
        assert sum(sizes[record].tiles for record in pack) <= 12
    if len(used) < len(sizes):
        assert len(packs) == count, "a step that ended for lack of room has no empty pack"


def test_the_step_ends_before_the_first_record_that_has_no_room() -> None:
    sizes = [Size(60), Size(60), Size(30), Size(50), Size(10)]
    read: list[Size] = []

    def reading() -> Iterator[Size]:
        for size in sizes:
            read.append(size)
            yield size

    packs = fill_packs(reading(), Batching(packs=2, **LIMITS))
    assert sorted(record for pack in packs for record in pack) == [0, 1, 2]
    assert len(read) == 4


def test_by_examples_every_record_is_a_pack_and_none_is_read_in_vain() -> None:
    sizes = iter([Size(99), Size(99), Size(1)])
    assert fill_packs(sizes, Batching(examples=2, **LIMITS)) == ((0,), (1,))
    assert list(sizes) == [Size(1)]


def test_records_are_spread_over_the_packs() -> None:
    """First fit alone would fill the first pack with all tiles and 100 of 130 tokens."""
    batching = Batching(packs=2, **LIMITS)
    sizes = [*[Size(10, 2)] * 6, Size(40), Size(30)]
    packs = fill_packs(sizes, batching)
    work = [sum(cost(sizes[record], batching) for record in pack) for pack in packs]
    assert max(work) - min(work) < 0.3


def test_first_fit_stands_where_spreading_would_pass_a_limit() -> None:
    sizes = [Size(tokens) for tokens in (30, 30, 40, 50, 50)]
    assert fill_packs(sizes, Batching(packs=2, **LIMITS)) == ((0, 1, 2), (3, 4))


@given(SIZES, st.integers(1, 5), st.integers(1, 4))
def test_parts_get_every_pack_once(sizes: list[Size], count: int, parts: int) -> None:
    for batching in (Batching(packs=count, **LIMITS), Batching(examples=count, **LIMITS)):
        packs = fill_packs(sizes, batching)
        shared = share_packs(packs, sizes, batching, parts)
        assert len(shared) == parts
        assert sorted(number for part in shared for number in part) == list(range(len(packs)))
        if len(packs) >= parts:
            assert all(shared)
        if batching.packs:
            assert max(map(len, shared)) <= -(-len(packs) // parts)


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=40), st.integers(1, 8))
def test_parts_differ_by_no_more_than_the_largest_item(costs: list[float], parts: int) -> None:
    shared = share_out(costs, parts)
    work = [sum(costs[item] for item in part) for part in shared]
    assert max(work) - min(work) <= max(costs) + 1e-9
    assert work == sorted(work, reverse=True)


def test_tiles_and_tokens_are_balanced_together() -> None:
    """Two records of many tiles and two of many tokens: each part gets one of each."""
    batching = Batching(examples=4, **LIMITS)
    sizes = [Size(10, 12), Size(10, 12), Size(100), Size(100)]
    shared = share_packs(fill_packs(sizes, batching), sizes, batching, 2)
    assert [sum(sizes[number].tiles for number in part) for part in shared] == [12, 12]


def test_cost_is_in_packs() -> None:
    assert cost(Size(50, 3), Batching(packs=1, **LIMITS)) == 0.75


def test_a_record_over_a_limit_is_refused() -> None:
    batching = Batching(packs=1, **LIMITS)
    check_fits(Size(100, 12), batching)
    with pytest.raises(InputError, match="101 tokens, a pack holds 100"):
        check_fits(Size(101), batching)
    with pytest.raises(InputError, match="13 tiles, a pack holds 12"):
        check_fits(Size(1, 13), batching)


@pytest.mark.parametrize("batching", [Batching(examples=3), Batching(packs=3)])
def test_every_part_needs_something(batching: Batching) -> None:
    check_parts(batching, 3)
    with pytest.raises(TrainingError, match=r"3 (examples|packs) cannot be shared by 4"):
        check_parts(batching, 4)
    with pytest.raises(TrainingError, match="shared by 0"):
        check_parts(batching, 0)
