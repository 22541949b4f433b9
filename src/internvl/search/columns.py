"""What is read of a row: its name, its picture, and what is kept beside the vector.

Knows columns; no files.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from internvl.errors import InputError

MAX_KEY = 4096
MAX_METADATA_BYTES = 1 << 20
IMAGE_COLUMNS = ("image", "images")
KEY_COLUMNS = ("key", "id")
UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a row are read: its name, its picture, and what is kept beside the vector.

    None: the name is `key`, the path of the picture, `id`, or else the number of the row; the picture is
    `image` or `images`; every other column that is no bytes is kept.
    """

    key: str | None = None
    image: str | None = None
    metadata: tuple[str, ...] | None = None


def key_of(cells: Mapping[str, Any], sources: Sequence[Any], columns: Columns, index: int) -> str:
    """The name of a row. Raises InputError where its column holds none, and over 4096 characters."""
    key = _find_key(cells, sources, columns, index)
    if len(key) > MAX_KEY:
        raise InputError(f"a key of {len(key)} characters ({key[:80]}...), the limit is {MAX_KEY}")
    return key


def _find_key(cells: Mapping[str, Any], sources: Sequence[Any], columns: Columns, index: int) -> str:
    if columns.key is not None:
        key = cells.get(columns.key)
        if not isinstance(key, str | int) or key == "":
            raise InputError(f"the key in {columns.key!r} must be text or a whole number, not {key!r}"[:500])
        return str(key)
    first, *others = KEY_COLUMNS
    path = sources[0] if isinstance(sources[0], str) and not sources[0].startswith("data:") else None
    for value in (cells.get(first), path, *map(cells.get, others)):
        if isinstance(value, str | int) and value != "":
            return str(value)
    return f"{index:09d}"


def metadata_of(cells: Mapping[str, Any], columns: Columns) -> str:
    """The kept columns as a JSON object. A value that JSON does not know, such as a date, is its text."""
    if columns.metadata is None:
        dropped = {columns.image} if columns.image else set(IMAGE_COLUMNS)
        names = [name for name in cells if name not in dropped]
    else:
        names = [name for name in columns.metadata if name in cells]
    kept = {name: _finite(cells[name]) for name in names if not isinstance(cells[name], bytes)}
    try:
        text = json.dumps(kept, ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, ValueError, RecursionError) as reason:
        raise InputError(f"its metadata cannot be kept as JSON: {reason}; choose other columns") from reason
    if len(text.encode("utf-8", "replace")) > MAX_METADATA_BYTES:
        raise InputError(
            f"{len(text)} characters of metadata, the limit is {MAX_METADATA_BYTES} bytes; keep fewer columns"
        )
    # Half of a surrogate pair as the letters of its escape, as `readable` writes it.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):04x}", text)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def readable(text: str) -> str:
    """Half of a surrogate pair, as in names that are no Unicode, as the escape that JSON has for it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    """With control characters, and those that turn the direction of writing, as escapes: what is shown then
    is what is there."""
    return "".join(
        char
        if char.isprintable() or (unicodedata.category(char) not in UNSEEN and char not in TURNS)
        else f"\\u{ord(char):04x}"
        for char in text
    )
