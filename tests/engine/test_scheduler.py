"""What runs when: order, room, fairness and preemption, with integers alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from internvl.engine.pages import PagePool
from internvl.engine.scheduler import Limits, Row, Scheduler, Work


def make(num_pages: int = 32, **limits: Any) -> Scheduler:
    defaults = {"page_size": 4, "step_tokens": 8, "rows": 4, "patience": 1000}
    return Scheduler(PagePool(num_pages), Limits(**{**defaults, **limits}))


def row(number: int, length: int, new: int = 4, **fields: Any) -> Row:
    return Row(number=number, num_tokens=length, final_tokens=length + new, **{"shares": False, **fields})


def step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """Runs one step; rows end when they are full. Returns (number, start, count) of the work."""
    for admitted in scheduler.admit():
        admitted.num_ready = admitted.num_tokens
    works: list[Work] = scheduler.plan()
    for work in works:
        scheduler.commit(work, int(work.is_last))
        if work.row.num_tokens == work.row.final_tokens:
            scheduler.remove(work.row)
    scheduler.check()
    return [(work.row.number, work.start, work.size) for work in works]


def test_prefill_goes_in_chunks_beside_decoding() -> None:
    scheduler = make()
    scheduler.add(row(0, 3))
    assert step(scheduler) == [(0, 0, 3)]
    scheduler.add(row(1, 12))
    assert step(scheduler) == [(0, 3, 1), (1, 0, 7)]
    assert step(scheduler) == [(0, 4, 1), (1, 7, 5)]
    assert step(scheduler) == [(0, 5, 1), (1, 12, 1)]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    scheduler = make()
    scheduler.add(row(0, 20))
    scheduler.add(row(1, 3))
    scheduler.add(row(2, 4))
    assert step(scheduler) == [(0, 0, 5), (1, 0, 3)]
    assert step(scheduler) == [(1, 3, 1), (0, 5, 7)]
    assert step(scheduler)[1:] == [(0, 12, 7)]


def test_smaller_priority_first_then_who_came_first() -> None:
    scheduler = make(rows=1)
    for number, priority in ((0, 1), (1, 0), (2, 0)):
        scheduler.add(row(number, 2, new=1, priority=priority))
    assert [step(scheduler)[0][0] for _ in range(3)] == [1, 2, 0]


def test_waiting_raises_the_priority() -> None:
    scheduler = make(rows=1, patience=3)
    scheduler.add(row(0, 2, new=1, priority=1))
    served = []
    for number in range(1, 9):
        scheduler.add(row(number, 2, new=1, priority=0))
        served += [one for one, _, _ in step(scheduler)]
    assert 0 in served[2:7]


def test_clients_share_evenly() -> None:
    scheduler = make(rows=1)
    for number in range(6):
        scheduler.add(row(number, 4, new=1, client="many"))
    scheduler.add(row(6, 4, new=1, client="one"))
    order = [step(scheduler)[0][0] for _ in range(7)]
    assert order.index(6) <= 1


def test_rows_that_find_no_pages_wait_in_order() -> None:
    scheduler = make(num_pages=4)
    scheduler.add(row(0, 8))
    scheduler.add(row(1, 12))
    scheduler.add(row(2, 2))
    step(scheduler)
    assert [one.number for one in scheduler.running] == [0]
    assert [one.number for one in scheduler.waiting] == [1, 2]


def test_the_last_one_gives_its_pages_to_those_before_it() -> None:
    scheduler = make(num_pages=4)
    scheduler.add(row(0, 4, new=12))
    scheduler.add(row(1, 4, new=12))
    works = [step(scheduler) for _ in range(40)]
    assert scheduler.num_preempted >= 1
    assert (0, 0, 4) in works[0]
    assert not any(work[:2] == (0, 0) for later in works[1:] for work in later)  # the first goes on
    assert not scheduler.running + scheduler.waiting
    assert scheduler.pool.num_available == 4


def test_a_better_priority_takes_the_place_of_a_worse_one() -> None:
    scheduler = make(rows=1)
    low, high = row(0, 4, priority=5), row(1, 4, priority=0)
    scheduler.add(low)
    step(scheduler)
    scheduler.add(high)
    assert step(scheduler) == [(1, 0, 4)]
    assert (scheduler.running, scheduler.waiting) == ([high], [low])
    assert (low.pages, low.num_computed) == ([], 0)


def test_nobody_is_preempted_in_vain() -> None:
    scheduler = make(num_pages=4)
    keeps, low = row(0, 8), row(1, 2, priority=5)
    for one in (keeps, low):
        scheduler.add(one)
    step(scheduler)
    scheduler.add(row(2, 12, priority=1))
    step(scheduler)
    assert scheduler.running == [keeps, low]


def test_a_known_prefix_is_not_computed_again() -> None:
    scheduler = make()
    keys = [bytes([number]) for number in range(3)]
    scheduler.add(row(0, 12, new=1, keys=keys, shares=True))
    step(scheduler)
    step(scheduler)
    second = row(1, 12, new=1, keys=keys, shares=True)
    scheduler.add(second)
    assert step(scheduler) == [(1, 8, 4)]  # the last page is computed for the scores of its last token
    assert second.num_cached == 8


def test_a_prefix_on_its_way_is_waited_for_and_others_pass() -> None:
    scheduler = make(step_tokens=4)
    keys = [bytes([number]) for number in range(3)]
    for number in (0, 1):
        scheduler.add(row(number, 12, keys=keys, shares=True))
    scheduler.add(row(2, 4))
    assert step(scheduler) == [(0, 0, 4)]
    assert [one.number for one in scheduler.running] == [0, 2]
    work = [step(scheduler) for _ in range(8)]
    starts = [start for works in work for number, start, _ in works if number == 1]
    assert starts[0] == 8


def test_slots_without_vision_tokens_hold_a_prefill_back() -> None:
    scheduler = make()
    one = row(0, 8)
    scheduler.add(one)
    scheduler.admit()
    one.num_ready = 3
    (work,) = scheduler.plan()
    assert (work.size, work.is_last) == (3, False)
    scheduler.commit(work, 0)
    assert scheduler.plan() == []
    one.num_ready = 8
    assert scheduler.plan()[0][1:3] == (3, 5)


def test_drafts_take_what_is_left_and_wrong_ones_are_computed_again() -> None:
    scheduler = make()
    one = row(0, 3, new=20)
    scheduler.add(one)
    step(scheduler)
    one.num_drafts = 9
    (work,) = scheduler.plan()
    assert (work.start, work.size, work.num_drafts, work.is_last) == (3, 8, 7, True)
    scheduler.commit(work, 3)
    assert (one.num_tokens, one.num_computed, one.num_drafts) == (7, 6, 0)


def test_reserving_rows_are_never_preempted() -> None:
    scheduler = make(num_pages=6, reserves=True)
    scheduler.add(row(0, 4, new=12, priority=5))
    scheduler.add(row(1, 4, new=12, priority=0))
    for _ in range(40):
        step(scheduler)
    assert scheduler.num_preempted == 0
    assert not scheduler.running + scheduler.waiting


def test_chunks_are_cut_at_fixed_places() -> None:
    scheduler = make(step_tokens=8, chunk=8, rows=2)
    scheduler.add(row(0, 20, new=2))
    scheduler.add(row(1, 5, new=2))
    assert [step(scheduler) for _ in range(4)] == [
        [(0, 0, 8)],
        [(0, 8, 8)],
        [(0, 16, 4)],
        [(0, 20, 1), (1, 0, 5)],
    ]


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8), st.integers(0, 2)), min_size=1, max_size=12),
    st.integers(6, 14),
    st.data(),
)
def test_everybody_ends(sizes: list[tuple[int, int, int]], num_pages: int, data: st.DataObject) -> None:
    scheduler = make(num_pages=num_pages, patience=20)
    rows = [
        row(number, length, new, priority=priority) for number, (length, new, priority) in enumerate(sizes)
    ]
    for one in rows:
        scheduler.add(one)
        if data.draw(st.booleans()):
            step(scheduler)
        if data.draw(st.integers(0, 9)) == 0:
            candidates = scheduler.running + scheduler.waiting
            if candidates:
                scheduler.remove(data.draw(st.sampled_from(candidates)))
    for _ in range(2000):
        if not scheduler.running and not scheduler.waiting:
            break
        step(scheduler)
    assert not scheduler.running + scheduler.waiting
    assert scheduler.pool.num_available == num_pages
