"""Confidence by hand-made tokens, and where values stand in JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.generation.confidence import confidence, field_confidences, find_values


def test_it_is_the_geometric_mean() -> None:
    assert confidence([]) is None
    assert confidence([math.log(0.5)]) == pytest.approx(0.5)
    assert confidence([math.log(0.9), math.log(0.4)]) == pytest.approx(0.6)
    assert confidence([0.0, -math.inf]) == 0.0


def test_each_value_has_that_of_the_tokens_that_wrote_it() -> None:
    pieces = [
        ('{"', 0.9), ("colour", 0.1), ('": "', 0.2), ("re", 0.8), ("d", 0.5), ('", "', 0.4), ("n", 0.3),
        ('":', 0.3), (" 1", 0.64), ("2", 0.25), ("}", 0.1), ("", 0.01),
    ]  # fmt: skip
    found = field_confidences([(text, math.log(value)) for text, value in pieces])
    assert found.keys() == {"/colour", "/n"}
    assert found["/colour"] == pytest.approx((0.8 * 0.5 * 0.4) ** (1 / 3))  # with its closing quote
    assert found["/n"] == pytest.approx((0.64 * 0.25) ** 0.5)


def test_tokens_without_text_count_for_what_becomes_certain_after_them() -> None:
    pieces = [('["', 0.0), ("", math.log(0.25)), ("é", math.log(0.16)), ('"]', 0.0), ("late", None)]
    assert field_confidences(pieces)["/0"] == pytest.approx((0.25 * 0.16 * 1.0) ** (1 / 3))
    assert field_confidences([("[1]", None)]) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": {"b/c": [1, true, "x"]}, "d~": null}', {"/a/b~1c/0": "1", "/a/b~1c/1": "true",
                                                        "/a/b~1c/2": 'x"', "/d~0": "null"}),
        ('[[], {}, [[2]], ""]', {"/2/0/0": "2", "/3": '"'}),
        ('{"a\\n\\u00e9": "x\\"}, y"}', {"/a\né": 'x\\"}, y"'}),
        ("12", {"": "12"}),
        ('{"a": 12, "b": 3', {"/a": "12"}),
        ('{"a": "red", "b": "bl', {"/a": 'red"'}),
        ('{"a": "b" " 1', {"/a": 'b"'}),
        ("[" * 5000, {}),
        ("", {}),
    ],
)  # fmt: skip
def test_where_values_stand(text: str, expected: dict[str, str]) -> None:
    found = find_values(text)
    assert {pointer: text[start:end] for pointer, (start, end) in found.items()} == expected


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        inner = [(name.replace("~", "~0").replace("/", "~1"), one) for name, one in value.items()]
    elif isinstance(value, list):
        inner = [(str(number), one) for number, one in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for name, one in inner for key, leaf in leaves(one, f"{path}/{name}").items()}


SIMPLE = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_every_value_is_found(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    read = {}
    for pointer, (start, end) in find_values(text).items():
        is_quoted = text[end - 1] == '"'
        read[pointer] = json.loads(text[start - is_quoted : end])
    assert read == leaves(value)
