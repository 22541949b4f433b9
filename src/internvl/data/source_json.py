"""Rows written as JSON: one object a line, or a small array of objects.

Knows JSON and byte offsets; not what a row means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl.data.offsets import index_lines, open_file
from internvl.errors import InputError

MAX_ARRAY_BYTES = 64 << 20


class JsonLines:
    """A JSONL file; blank lines are passed over. Only byte offsets are kept in memory."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.offsets = index_lines(path)

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, index: int) -> Mapping[str, Any]:
        """The object of a line. Raises InputError naming the line where it is none."""
        try:
            value = parse_json(self.offsets.read(index))
        except InputError as reason:
            raise InputError(f"{self.where(index)}: {reason}") from reason
        if not isinstance(value, dict):
            raise InputError(f"{self.where(index)}: a row is an object, this is a {type(value).__name__}")
        return value

    def where(self, index: int) -> str:
        return f"{self.offsets.path}, line {self.offsets.line(index)}"


class JsonArray:
    """A JSON file of at most 64 MiB that is one array of objects; kept in memory."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path
        value = load_json(path, MAX_ARRAY_BYTES, "write it as JSONL, one object a line")
        if not isinstance(value, list):
            raise InputError(f"{path} holds a {type(value).__name__}; rows are an array of objects, or JSONL")
        self._rows = value

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        value = self._rows[index]
        if not isinstance(value, dict):
            raise InputError(f"{self.where(index)}: a row is an object, this is a {type(value).__name__}")
        return value

    def where(self, index: int) -> str:
        return f"{self._path}, item {index + 1}"


def load_json(path: Path, max_bytes: int, remedy: str) -> Any:
    """The value of a JSON file; InputError over `max_bytes`, for broken JSON and for doubled keys."""
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{path} is over {max_bytes} bytes; {remedy}")
    try:
        return parse_json(content)
    except InputError as reason:
        raise InputError(f"{path}: {reason}") from reason


def parse_json(content: bytes) -> Any:
    """UTF-8 JSON, with or without a byte order mark. Raises InputError, also for a key that comes twice."""
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except InputError:
        raise
    except UnicodeDecodeError as reason:
        raise InputError(f"not UTF-8: {reason}") from reason
    except (ValueError, RecursionError) as reason:  # also numbers of thousands of digits
        raise InputError(f"not JSON: {reason}") from reason


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InputError(f"the key {twice!r} comes twice in one object")
    return value
