"""Which record comes when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl.data.meta import DataSet
from internvl.data.mixture import Mixture, Pick
from internvl.errors import InputError
from tests.data.rows import numbered


def two(folder: Path) -> tuple[DataSet, ...]:
    return numbered(folder, "large", 400), numbered(folder, "small", 100)


def epoch_of(mixture: Mixture, epoch: int = 0) -> list[Pick]:
    return [mixture.pick(epoch * len(mixture) + index) for index in range(len(mixture))]


def test_an_epoch_takes_every_record_once(tmp_path: Path) -> None:
    mixture = Mixture((numbered(tmp_path, "a", 7), numbered(tmp_path, "b", 4)), seed=3)
    every = [(0, row) for row in range(7)] + [(1, row) for row in range(4)]
    orders = []
    for epoch in range(3):
        picks = epoch_of(mixture, epoch)
        assert sorted(pick[:2] for pick in picks) == every
        assert [pick.position for pick in picks] == list(range(epoch * 11, epoch * 11 + 11))
        assert {pick.epoch for pick in picks} == {epoch}
        orders.append(tuple(pick[:2] for pick in picks))
    assert len(set(orders)) == 3


def test_half_takes_the_first_half_and_three_takes_thrice(tmp_path: Path) -> None:
    half, thrice = numbered(tmp_path, "a", 9, repeat=0.5), numbered(tmp_path, "b", 5, repeat=3)
    picks = epoch_of(Mixture((half, thrice)))
    counts = Counter(pick[:2] for pick in picks)
    assert counts == {(0, row): 1 for row in range(4)} | {(1, row): 3 for row in range(5)}


def test_a_repeated_set_is_gone_through_before_it_is_repeated(tmp_path: Path) -> None:
    """By the order of its own places, whatever the shuffle between data sets."""
    mixture = Mixture((numbered(tmp_path, "a", 50, repeat=2),), "sqrt")
    assert Counter(pick.row for pick in epoch_of(mixture)) == dict.fromkeys(range(50), 2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**63), position=st.integers(0, 10**9), others=st.lists(st.integers(0, 999)))
def test_a_pick_depends_on_seed_and_position_only(
    tmp_path: Path, seed: int, position: int, others: list[int]
) -> None:
    used, fresh = Mixture(two(tmp_path), "sqrt", seed), Mixture(two(tmp_path), "sqrt", seed)
    for other in others:
        used.pick(other)
        used.replacement(other, 1)
    assert used.pick(position) == fresh.pick(position)
    assert used.replacement(position, 2) == fresh.replacement(position, 2)
    assert fresh.pick(position).epoch == position // len(fresh)


def test_seeds_give_other_orders(tmp_path: Path) -> None:
    orders = {tuple(epoch_of(Mixture(two(tmp_path), seed=seed))) for seed in range(5)}
    assert len(orders) == 5


def test_square_roots_share_out_the_places(tmp_path: Path) -> None:
    mixture = Mixture(two(tmp_path), "sqrt")
    assert Counter(pick.dataset for pick in epoch_of(mixture)) == {0: 333, 1: 167}  # 20 to 10 of 500


def test_square_roots_are_right_on_average_in_any_stretch(tmp_path: Path) -> None:
    shares = []
    for seed in range(40):
        mixture = Mixture(two(tmp_path), "sqrt", seed)
        start = 37 * seed
        shares.append(sum(mixture.pick(start + index).dataset for index in range(60)) / 60)
    deviation = (1 / 3 * 2 / 3 / 60 / len(shares)) ** 0.5
    assert abs(sum(shares) / len(shares) - 1 / 3) < 4 * deviation


def test_square_roots_count_repetitions(tmp_path: Path) -> None:
    mixture = Mixture((numbered(tmp_path, "a", 25, repeat=4), numbered(tmp_path, "b", 100)), "sqrt")
    assert Counter(pick.dataset for pick in epoch_of(mixture)) == {0: 100, 1: 100}


def test_weights_share_out_the_places_evenly_over_rows(tmp_path: Path) -> None:
    mixture = Mixture(
        (numbered(tmp_path, "a", 30, weight=1), numbered(tmp_path, "b", 70, weight=4)), "weight"
    )
    picks = [pick for epoch in range(6) for pick in epoch_of(mixture, epoch)]
    counts = Counter(pick.dataset for pick in picks)
    assert counts == {0: 120, 1: 480}
    assert set(Counter(pick.row for pick in picks if pick.dataset == 0).values()) == {4}
    assert set(Counter(pick.row for pick in picks if pick.dataset == 1).values()) == {6, 7}


def test_a_tiny_share_still_has_a_place(tmp_path: Path) -> None:
    sets = numbered(tmp_path, "a", 30, weight=1e-9), numbered(tmp_path, "b", 70, weight=1)
    assert Counter(pick.dataset for pick in epoch_of(Mixture(sets, "weight"))) == {0: 1, 1: 100}


def test_weights_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="small has no 'weight'"):
        Mixture((numbered(tmp_path, "small", 3),), "weight")


def test_replacements_are_every_other_record_once(tmp_path: Path) -> None:
    mixture = Mixture((numbered(tmp_path, "a", 6), numbered(tmp_path, "b", 3)), seed=5)
    orders = set()
    for position in range(40):
        own = mixture.pick(position)
        size = mixture.datasets[own.dataset].size
        taken = [mixture.replacement(position, attempt) for attempt in range(1, size)]
        assert {pick.dataset for pick in taken} == {own.dataset}
        assert sorted([own.row, *(pick.row for pick in taken)]) == list(range(size))
        assert {(pick.epoch, pick.position) for pick in taken} == {(own.epoch, position)}
        orders.add(tuple(pick.row for pick in taken))
        with pytest.raises(InputError, match=f"{size - 1} others"):
            mixture.replacement(position, size)
    assert len(orders) > 10


def test_replacements_stay_in_the_part_in_use(tmp_path: Path) -> None:
    mixture = Mixture((numbered(tmp_path, "a", 100, repeat=0.03),))
    assert {mixture.replacement(0, attempt).row for attempt in (1, 2)} <= {0, 1, 2}


def test_wrong_positions_and_no_data_are_refused(tmp_path: Path) -> None:
    mixture = Mixture((numbered(tmp_path, "a", 2),))
    with pytest.raises(IndexError, match="-1"):
        mixture.pick(-1)
    with pytest.raises(IndexError, match="attempts"):
        mixture.replacement(0, 0)
    with pytest.raises(InputError, match="no data sets"):
        Mixture(())


def test_picks_are_the_same_on_every_machine(tmp_path: Path) -> None:
    """A resumed run relies on these very numbers."""
    mixture = Mixture(two(tmp_path), "sqrt", seed=7)
    assert [tuple(mixture.pick(position)[:2]) for position in (0, 1, 499, 500, 12_345)] == [
        (0, 11),
        (0, 77),
        (0, 248),
        (1, 53),
        (0, 231),
    ]
    assert [mixture.replacement(1, attempt).row for attempt in (1, 2, 3)] == [196, 359, 234]
