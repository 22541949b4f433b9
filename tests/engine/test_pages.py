"""Pages: counted, named, kept and let go; whole after every random operation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from internvl.engine.pages import PagePool
from internvl.errors import InputError


def names(*numbers: int) -> list[bytes]:
    return [bytes([number]) for number in numbers]


def test_pages_come_in_a_row_and_go_on_where_they_ended() -> None:
    pool = PagePool(32)
    assert pool.take(3) == [0, 1, 2]
    assert pool.take(2, after=2) == [3, 4]
    assert (pool.num_used, pool.num_available) == (5, 27)


def test_two_sequences_that_grow_in_turn_stay_in_one_run_each() -> None:
    pool = PagePool(32)
    tables = [pool.take(4) or [], pool.take(4) or []]
    for _ in range(8):
        for table in tables:
            table += pool.take(1, after=table[-1]) or []
    assert all(table == list(range(table[0], table[0] + 12)) for table in tables)


def test_more_than_there_is_takes_nothing() -> None:
    pool = PagePool(4)
    pool.take(3)
    assert pool.take(2) is None
    assert pool.num_available == 1


def test_a_prefix_is_found_shared_and_survives_its_first_user() -> None:
    pool = PagePool(8)
    table = pool.take(3) or []
    for page, name in zip(table, names(1, 2, 3), strict=True):
        pool.name(page, name)
    assert pool.find(names(1, 2, 9)) == table[:2]
    pool.share(table[:2])
    pool.release(table)
    assert (pool.num_used, pool.num_idle) == (2, 1)
    assert pool.find(names(1, 2, 3)) == table
    assert pool.num_available_beside(table) == pool.num_available - 1


def test_the_end_of_the_oldest_prefix_goes_first() -> None:
    pool = PagePool(16)
    for first in (0, 8):
        table = pool.take(8) or []
        for page, name in zip(table, names(*range(first, first + 8)), strict=True):
            pool.name(page, name)
        pool.release(table)
    pool.share(pool.find(names(*range(8))))
    pool.release(pool.find(names(*range(8))))  # the first prefix was used last
    assert pool.take(1) is not None
    assert len(pool.find(names(*range(8)))) == 8
    assert pool.find(names(*range(8, 16))) == []
    assert pool.num_evicted == 8


def test_a_name_belongs_to_one_page() -> None:
    pool = PagePool(4)
    first, second = pool.take(2) or []
    pool.name(first, b"x")
    pool.name(second, b"x")
    pool.release([first, second])
    assert pool.find([b"x"]) == [first]
    assert pool.num_idle == 1
    pool.check([])


def test_a_pool_needs_pages() -> None:
    with pytest.raises(InputError, match="at least 1 page, got 0"):
        PagePool(0)


class Traffic(RuleBasedStateMachine):
    """Random users of one pool; the pool is checked against them after every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(12)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(1, 6), start=st.integers(0, 3))
    def begin(self, count: int, start: int) -> None:
        """A sequence whose prompt begins with `start` pages that others may know."""
        wanted = names(*range(start))
        found = self.pool.find(wanted)
        if count > self.pool.num_available_beside(found):
            return
        self.pool.share(found)
        table = found + (self.pool.take(count, found[-1] if found else None) or [])
        for page, name in zip(table, wanted, strict=False):
            self.pool.name(page, name)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        available = self.pool.num_available
        pages = self.pool.take(1, table[-1])
        assert (pages is None) == (available == 0)
        table += pages or []

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @invariant()
    def is_whole(self) -> None:
        self.pool.check(self.tables)


test_random_traffic = Traffic.TestCase


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_a_page_is_given_out_once(counts: list[int]) -> None:
    pool = PagePool(40)
    given_out = [page for count in counts for page in pool.take(count) or ()]
    assert len(given_out) == len(set(given_out))
    pool.check([given_out])
