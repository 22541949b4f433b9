"""Values of somebody else's JSON are checked and complaints name the field."""

from __future__ import annotations

import pytest

from internvl.checkpoints.fields import Fields
from internvl.errors import ConfigError

FIELDS = Fields(
    {
        "n": 3,
        "square": [14, 14],
        "oblong": [14, 7],
        "x": 0.5,
        "yes": True,
        "word": "gelu",
        "list": [1, 2.5],
        "names": ["A", "B"],
        "inner": {"deep": 1},
        "null": None,
        "huge": 1 << 40,
        "nan": float("nan"),
        "enormous": 10**400,
        "with_nan": [1, float("nan")],
        "with_infinity": [1, float("-inf")],
        "with_enormous": [1, 10**400],
        "with_flag": [1, True],
    },
    "here.json",
)


def test_values() -> None:
    assert FIELDS.count("n") == 3
    assert FIELDS.count("square") == 14
    assert FIELDS.number("x") == 0.5
    assert FIELDS.number("n") == 3.0
    assert FIELDS.flag("yes", default=False)
    assert FIELDS.text("word") == "gelu"
    assert FIELDS.numbers("list") == (1.0, 2.5)
    assert FIELDS.first("names") == "A"
    assert FIELDS.inner("inner").count("deep") == 1


def test_defaults_stand_in_for_absent_and_null() -> None:
    for name in ("absent", "null"):
        assert FIELDS.count(name, 7) == 7
        assert FIELDS.number(name, 0.1) == 0.1
        assert FIELDS.flag(name, default=True)
        assert FIELDS.text(name, "x") == "x"
        assert FIELDS.numbers(name) == ()
        assert FIELDS.first(name) == ""
        assert not FIELDS.has(name)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("count", "oblong"),
        ("count", "huge"),
        ("count", "yes"),
        ("count", "x"),
        ("count", "absent"),
        ("whole", "word"),
        ("number", "nan"),
        ("number", "enormous"),
        ("number", "word"),
        ("text", "n"),
        ("numbers", "names"),
        ("numbers", "with_nan"),
        ("numbers", "with_infinity"),
        ("numbers", "with_enormous"),
        ("numbers", "with_flag"),
        ("inner", "list"),
    ],
)
def test_wrong_values_are_named(method: str, name: str) -> None:
    arguments = (name, 0) if method == "whole" else (name,)
    with pytest.raises(ConfigError, match=rf"here\.json: {name} is "):
        getattr(FIELDS, method)(*arguments)


def test_a_flag_is_not_a_number() -> None:
    with pytest.raises(ConfigError, match=r"n is 3; expected true or false"):
        FIELDS.flag("n", default=False)


def test_the_place_of_a_nested_field() -> None:
    with pytest.raises(ConfigError, match=r"here\.json: inner: width is missing; expected a whole number"):
        FIELDS.inner("inner").count("width")
