"""Ordered patterns: the first match wins, a pattern without a match is an error."""

from __future__ import annotations

import pytest

from internvl.adapt.patterns import match
from internvl.errors import InputError

NAMES = ["vit.layers.0.attn.qkv.weight", "vit.layers.10.ls1", "projector.fc1.bias", "llm.head.weight"]


def test_the_first_match_wins() -> None:
    rules = [(r"vit\.layers\.0\..*", 1), (r"vit\..*", None), (r".*", 2)]
    assert match(rules, NAMES) == {NAMES[0]: 1, NAMES[1]: None, NAMES[2]: 2, NAMES[3]: 2}


def test_names_nobody_asks_for_are_left_out() -> None:
    assert match([(r"llm\..*", "x")], NAMES) == {NAMES[3]: "x"}


def test_a_pattern_covers_the_whole_name() -> None:
    with pytest.raises(InputError, match=r"'vit' matches none of 4 names; they begin with vit\.layers\.0"):
        match([("vit", 1)], NAMES)


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(InputError, match=r"'head\.\*' matches none"):
        match([(r".*", 1), (r"head.*", 2)], NAMES)


def test_a_shadowed_pattern_is_allowed() -> None:
    assert set(match([(r".*", 1), (r"llm.*", 2)], NAMES).values()) == {1}


def test_the_order_of_names_is_kept() -> None:
    assert list(match([(r"llm.*", 1), (r"vit.*", 2)], NAMES)) == [NAMES[0], NAMES[1], NAMES[3]]


def test_no_rules_and_no_names() -> None:
    assert match([], NAMES) == {}
    with pytest.raises(InputError, match=r"matches none of 0 names; they begin with none"):
        match([(".*", 1)], [])


def test_a_broken_pattern() -> None:
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        match([("(", 1)], NAMES)
