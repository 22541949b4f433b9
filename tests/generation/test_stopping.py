"""Stop ids, the limit, and stop strings that arrive in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.generation.sampling import Sampling
from internvl.generation.stopping import StopStrings, find_reason


def test_reasons() -> None:
    sampling = Sampling(stop_ids=(7, 9), max_new_tokens=3)
    assert find_reason(sampling, 1, 5) is None
    assert find_reason(sampling, 1, 9) == "stop"
    assert find_reason(sampling, 3, 5) == "length"
    assert find_reason(sampling, 3, 7) == "stop"


def run(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], bool]:
    """What came out piece by piece, and at the end."""
    strings = StopStrings(stops)
    shown = [strings.push(piece) for piece in pieces]
    return [*shown, strings.finish()], strings.is_found


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "is_found"),
    [
        ([], ["a", "b"], ["a", "b", ""], False),
        (["END"], ["one E", "N", "D two"], ["one ", "", "", ""], True),
        (["END"], ["one E", "N", "T"], ["one ", "", "ENT", ""], False),
        (["END"], ["one EN"], ["one ", "EN"], False),
        (["aab"], ["aa", "aab"], ["", "aa", ""], True),
        (["\n\n", "###"], ["x\n", "y#", "##z"], ["x", "\ny", "", ""], True),
        (["bcd", "c"], ["ab", "cd"], ["a", "b", ""], True),
        (["c", "abc"], ["ab", "c"], ["", "", ""], True),
        (["x"], ["axb", "more"], ["a", "", ""], True),
    ],
)
def test_by_hand(stops: list[str], pieces: list[str], shown: list[str], is_found: bool) -> None:
    assert run(stops, pieces) == (shown, is_found)


def cut(text: str, stops: Sequence[str]) -> str:
    """The definition: text up to the stop string complete first, the longest of those ending together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


WORDS = st.text("ab\n", min_size=1, max_size=4)


@given(
    pieces=st.lists(st.text("ab\n", max_size=5), max_size=10), stops=st.lists(WORDS, min_size=1, max_size=3)
)
def test_pieces_do_not_matter(pieces: list[str], stops: list[str]) -> None:
    shown, is_found = run(stops, pieces)
    text = "".join(pieces)
    assert "".join(shown) == cut(text, stops)
    assert is_found == any(stop in text for stop in stops)


@given(pieces=st.lists(st.text("ab", max_size=5), max_size=10), stops=st.lists(WORDS, min_size=1, max_size=3))
def test_all_but_a_possible_beginning_is_shown_at_once(pieces: list[str], stops: list[str]) -> None:
    strings, shown, text = StopStrings(stops), "", ""
    for piece in pieces:
        shown, text = shown + strings.push(piece), text + piece
        beginnings = [stop[:size] for stop in stops for size in range(len(stop))]
        held = max(len(beginning) for beginning in beginnings if text.endswith(beginning))
        if not strings.is_found:
            assert shown == text[: len(text) - held]
