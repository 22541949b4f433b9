"""Typed reading of somebody else's JSON: every value is checked, every complaint names its field.

Knows JSON types and limits, not what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from internvl.errors import ConfigError

MAX_COUNT = 1 << 31
"""No width, vocabulary or context of a real model reaches this; a hostile file may say anything."""

MAX_LAYERS = 1000
"""Of a tower or a language model: each is built before its weights are seen."""

MAX_NUMBER = 1e30
"""No rate, scale or factor reaches this; a whole number in JSON may even be beyond all floats."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it was found, e.g. `config.json: llm_config`."""

    values: Mapping[str, object]
    place: str = "config.json"

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def count(self, name: str, default: int | None = None, *, limit: int = MAX_COUNT) -> int:
        """A positive whole number; sizes given as [n, n] count as n."""
        value = self.values.get(name)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            raise self.wrong(name, f"a whole number from 1 to {limit}")
        return value

    def whole(self, name: str, default: int) -> int:
        """A whole number of either sign."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not _is_number(value):
            raise self.wrong(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; () when the field is not there."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(_is_number(entry) for entry in value):
            raise self.wrong(name, "a list of numbers")
        return tuple(float(entry) for entry in value)

    def first(self, name: str) -> str:
        """The first string of a list, or ""."""
        value = self.values.get(name)
        return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else ""

    def inner(self, name: str) -> Fields:
        """A nested object; empty when it is not there."""
        value = self.values.get(name)
        if value is None:
            return Fields({}, f"{self.place}: {name}")
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.place}: {name}")

    def wrong(self, name: str, expected: str) -> ConfigError:
        """The error to raise for a field that cannot be used."""
        found = f"is {self.values[name]!r}"[:120] if name in self.values else "is missing"
        return ConfigError(f"{self.place}: {name} {found}; expected {expected}")


def _is_number(value: object) -> TypeGuard[int | float]:
    """Neither NaN, nor too large to be meant."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
