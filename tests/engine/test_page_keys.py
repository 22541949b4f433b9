"""Keys of pages: equal exactly where keys and values would be."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from internvl.engine.page_keys import KeyChain, Span


def keys(ids: Sequence[int], spans: Sequence[Span] = (), root: bytes = b"", **options: object) -> list[bytes]:
    chain = KeyChain(4, root, spans, **options)  # type: ignore[arg-type]
    chain.extend(ids)
    return chain.keys


def test_only_full_pages_have_keys() -> None:
    assert [len(keys(range(count))) for count in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 7))
def test_keys_do_not_depend_on_how_ids_arrive(ids: list[int], size: int) -> None:
    chain = KeyChain(4, b"")
    for first in range(0, len(ids), size):
        chain.extend(ids[first : first + size])
    assert chain.keys == keys(ids)


def test_a_page_is_known_by_all_that_stands_before_it() -> None:
    one, other = keys([1, 2, 3, 4, 5, 6, 7, 8]), keys([0, 2, 3, 4, 5, 6, 7, 8])
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert keys([1, 2, 3, 4, 9, 9, 9, 9])[0] == one[0]
    assert keys([1, 2, 3, 4, 1, 2, 3, 4])[0] != keys([1, 2, 3, 4, 1, 2, 3, 4])[1]


def test_two_pictures_never_share_a_page() -> None:
    ids = [1, 25, 25, 25, 25, 25, 25, 2]
    cat, dog = keys(ids, [Span(1, 7, b"cat")]), keys(ids, [Span(1, 7, b"dog")])
    assert not set(cat) & set(dog)
    assert keys(ids, [Span(1, 7, b"cat")]) == cat
    assert keys(ids) != cat


def test_where_a_picture_begins_counts() -> None:
    ids = [25] * 8
    whole = keys(ids, [Span(0, 8, b"a")])
    assert keys(ids, [Span(0, 4, b"a"), Span(4, 8, b"a")])[1] != whole[1]
    assert keys(ids, [Span(0, 4, b"a"), Span(4, 8, b"b")])[0] == whole[0]
    assert keys(ids, [Span(0, 2, b"a"), Span(2, 4, b"b")])[0] != keys(ids, [Span(0, 2, b"ab")])[0]


def test_adapters_and_rotations_have_pages_of_their_own() -> None:
    ids = list(range(8))
    assert not set(keys(ids)) & set(keys(ids, root=b"adapter"))
    long = keys(ids, regime=lambda position: int(position >= 6))
    plain = keys(ids, regime=lambda _: 0)
    assert [one == other for one, other in zip(long, plain, strict=True)] == [True, False]
