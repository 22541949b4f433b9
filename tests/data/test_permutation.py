"""Permutations that are computed index by index."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.data.permutation import permuted

KEYS = st.lists(st.integers(), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 400), key=KEYS)
def test_it_is_a_permutation(size: int, key: tuple[int, ...]) -> None:
    assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 10**15), key=KEYS, data=st.data())
def test_places_of_a_huge_one_are_inside_and_differ(
    size: int, key: tuple[int, ...], data: st.DataObject
) -> None:
    indices = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))
    places = {permuted(index, size, key) for index in indices}
    assert len(places) == len(indices)
    assert all(0 <= place < size for place in places)


@settings(max_examples=30, deadline=None)
@given(key=KEYS, change=st.integers(1, 1000), data=st.data())
def test_every_part_of_the_key_matters(key: tuple[int, ...], change: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, len(key) - 1))
    other = (*key[:part], key[part] + change, *key[part + 1 :])
    here = [permuted(index, 1000, key) for index in range(50)]
    assert here != [permuted(index, 1000, other) for index in range(50)]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_orders_come_equally_often(size: int) -> None:
    seeds = 2400
    seen = Counter(tuple(permuted(index, size, (seed,)) for index in range(size)) for seed in range(seeds))
    orders = list(permutations(range(size)))
    expected = seeds / len(orders)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in orders)
    degrees = len(orders) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5  # five standard deviations above the mean


def test_neighbours_are_scattered_evenly() -> None:
    size, buckets = 10_000, 10
    table = Counter(
        (index * buckets // size, permuted(index, size, (7,)) * buckets // size) for index in range(size)
    )
    expected = size / buckets**2
    chi_square = sum((table[a, b] - expected) ** 2 / expected for a in range(buckets) for b in range(buckets))
    degrees = (buckets - 1) ** 2
    assert degrees - 5 * (2 * degrees) ** 0.5 < chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_the_order_is_the_same_on_every_machine() -> None:
    """A resumed run relies on these very numbers."""
    assert [permuted(index, 10, (0, 1)) for index in range(10)] == [5, 9, 6, 1, 2, 8, 3, 4, 0, 7]
    assert permuted(123_456_789, 10**12, (42, 3, 1)) == 261892450360


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_an_index_outside_is_refused(index: int, size: int) -> None:
    with pytest.raises(IndexError, match="no index"):
        permuted(index, size, (0,))
