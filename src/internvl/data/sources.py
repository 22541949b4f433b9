"""Where rows come from: one face over every file format, chosen by suffix or by what a folder holds.

Nothing is kept in memory but offsets. Knows files; not what a row means, no pixels, no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from internvl.data.source_json import JsonArray, JsonLines
from internvl.errors import InputError


class Source(Protocol):
    """Rows by index. Pictures in a row are paths (relative to the root of the data set) or bytes.

    Reading is safe under threads and forks and never changes the source.
    """

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Mapping[str, Any]:
        """Row `index` of 0..len-1. Raises InputError for a broken one, saying where it is."""

    def where(self, index: int) -> str:
        """The place of a row as reports name it: file and line, or file and record."""


FORMATS: Mapping[str, Callable[[Path], Source]] = {
    ".jsonl": JsonLines,
    ".json": JsonArray,
}


def open_source(path: Path) -> Source:
    """The rows of a file, found by its suffix. Raises InputError for unknown kinds and for no rows at all."""
    open_format = FORMATS.get(path.suffix.lower())
    if open_format is None:
        raise InputError(f"{path}: unknown kind of data; known are {', '.join(FORMATS)}")
    source = open_format(path)
    if not len(source):
        raise InputError(f"{path} holds no rows")
    return source
