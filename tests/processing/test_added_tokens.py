from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.processing.added_tokens import AddedToken, Splitter, merge, overlaps


def split(
    text: str, *tokens: AddedToken, plain: tuple[tuple[int, int], ...] = (), free: tuple[str, ...] = ()
):
    parts = Splitter(tokens, free).split(text, plain)
    return [(part.token.id if part.token else None, text[part.start : part.end]) for part in parts]


IMG = AddedToken("<img>", 1)
END = AddedToken("<end>", 2)


def test_text_is_cut_at_tokens_in_order() -> None:
    assert split("a<img>b<end>", IMG, END) == [(None, "a"), (1, "<img>"), (None, "b"), (2, "<end>")]


def test_text_without_tokens_is_one_part_and_no_text_is_none() -> None:
    assert split("abc", IMG) == [(None, "abc")]
    assert split("", IMG) == []
    assert split("<img>") == [(None, "<img>")]


def test_leftmost_then_longest_wins() -> None:
    tokens = (AddedToken("ab", 1), AddedToken("abc", 2), AddedToken("bcd", 3))
    assert split("abcd", *tokens) == [(2, "abc"), (None, "d")]


def test_token_in_plain_text_is_text() -> None:
    assert split("<img>x<img>", IMG, plain=((5, 11),)) == [(1, "<img>"), (None, "x<img>")]


@pytest.mark.parametrize("plain", [(0, 1), (4, 9), (2, 3)])
def test_token_that_touches_plain_text_is_text(plain: tuple[int, int]) -> None:
    assert split("<img>", IMG, plain=(plain,)) == [(None, "<img>")]


def test_plain_text_beside_a_token_does_not_hide_it() -> None:
    assert split("a<img>b", IMG, plain=((0, 1), (6, 7))) == [(None, "a"), (1, "<img>"), (None, "b")]


def test_free_token_is_recognised_in_plain_text() -> None:
    assert split("<img><end>", IMG, END, plain=((0, 10),), free=("<end>",)) == [(None, "<img>"), (2, "<end>")]


def test_token_eats_white_space_as_told() -> None:
    right = AddedToken("<r>", 1, rstrip=True)
    left = AddedToken("<l>", 2, lstrip=True)
    assert split("a <r> \n b <l> c", right, left) == [
        (None, "a "),
        (1, "<r>"),
        (None, "b"),
        (2, "<l>"),
        (None, " c"),
    ]
    assert split("<r>  <l>", right, left) == [(1, "<r>"), (2, "<l>")]


def test_single_word_token_needs_room() -> None:
    word = AddedToken("word", 1, single_word=True)
    assert split("word", word) == [(1, "word")]
    assert split("a word b", word) == [(None, "a "), (1, "word"), (None, " b")]
    assert split("words", word) == [(None, "words")]
    assert split("sword", word) == [(None, "sword")]


def test_merge_joins_what_touches_and_drops_what_is_empty() -> None:
    assert merge([(5, 7), (0, 2), (2, 3), (4, 4), (6, 9)]) == [(0, 3), (5, 9)]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5),
    st.tuples(st.integers(0, 11), st.integers(1, 12)).filter(lambda span: span[0] < span[1]),
)
def test_overlaps_equals_looking_at_every_character(
    spans: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    inside = {character for start, end in spans for character in range(start, end)}
    assert overlaps(merge(spans), span) == any(character in inside for character in range(*span))


@given(st.text("<img>e nd", max_size=40))
def test_parts_cover_the_text_without_gaps(text: str) -> None:
    parts = Splitter((IMG, END)).split(text)
    assert "".join(text[part.start : part.end] for part in parts) == text
