"""Grounding tags are left out, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.serving.shown_text import TAG, TagFilter

ALPHABET = st.sampled_from(["<", ">", "/", "ref", "box", "<box>", "</ref>", "quad", "a", " ", "[[1]]"])


def shown(pieces: list[str], *, keeps: bool = False) -> list[str]:
    filter = TagFilter(keeps=keeps)
    return [*(filter.push(piece) for piece in pieces), filter.finish()]


@given(st.lists(ALPHABET, max_size=20), st.data())
def test_the_cut_does_not_matter(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join(shown(pieces)) == TAG.sub("", text)


def test_nothing_of_a_tag_is_let_out_early() -> None:
    assert shown(["a <b", "ox", ">1</bo", "x> b <"]) == ["a ", "", "1", " b ", "<"]


@pytest.mark.parametrize("text", ["<ref>dog</ref><box>[[1, 2, 3, 4]]</box>", "a < b", "<boxes>"])
def test_tags_are_kept_when_asked_for(text: str) -> None:
    assert "".join(shown([text], keeps=True)) == text
