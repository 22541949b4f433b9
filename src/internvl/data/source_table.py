"""Rows of a CSV or TSV file; its first line names the columns.

A record may hold line breaks inside quotes. Knows cells; not where records begin (see `table_index`), nor
what a column means.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl.data.offsets import MAX_RECORD_BYTES, open_file
from internvl.data.table_index import index_table
from internvl.errors import InputError

# Python's own limit is 128 KiB a cell. It is one for the process, so it is raised once, before threads read,
# and never lowered: others may have set a larger one.
csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))


class TableRows:
    """A table in UTF-8. The separator is a tab in .tsv files; else comma, semicolon or tab, by the first
    line.

    Column names are taken in lower case. Only byte offsets are kept in memory. Raises InputError for names
    that cannot be used, and where it is open which lines are rows (`index_table`).
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with open_file(path) as file:
            first = file.readline(MAX_RECORD_BYTES)
        is_tabbed = path.suffix.lower() == ".tsv"
        self._separator = "\t" if is_tabbed else max(",;\t", key=first.decode("latin-1").count)
        self.offsets = index_table(path, self._separator)
        if not len(self.offsets):
            raise InputError(f"{path} is empty; its first line must name the columns")
        try:
            cells = self._cells(_decode(self.offsets.read(0)))
        except InputError as reason:
            raise InputError(f"{path}, first line: {reason}") from reason
        self._columns = tuple(cell.strip().lower() for cell in cells)
        if not all(self._columns) or len(set(self._columns)) < len(self._columns):
            raise InputError(f"{path}: every column needs a name of its own, got {list(self._columns)}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Mapping[str, Any]:
        """Column names to cells, all of them text. Raises InputError where there are more or fewer cells."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, there is no row {index}")
        try:
            record = _decode(self.offsets.read(index + 1))
            cells = self._cells(record)
        except InputError as reason:
            raise InputError(f"{self.where(index)}: {reason}") from reason
        if len(cells) != len(self._columns):
            # Many lines are the sign of a quote that is closed rows later, by one that was to open a cell.
            num_lines = record.rstrip("\r\n").count("\n") + 1
            extent = f" in {num_lines} lines" if num_lines > 1 else ""
            raise InputError(
                f"{self.where(index)}: {len(cells)} cells{extent} for the {len(self._columns)} columns "
                f"{', '.join(self._columns)}; quote cells that hold a {self._separator!r}"
            )
        return dict(zip(self._columns, cells, strict=True))

    def where(self, index: int) -> str:
        return f"{self.offsets.path}, line {self.offsets.line(index + 1)}"

    def _cells(self, record: str) -> list[str]:
        try:
            return next(csv.reader([record], delimiter=self._separator, strict=True))
        except csv.Error as reason:
            raise InputError(f"not a row of a table: {reason}") from reason


def _decode(record: bytes) -> str:
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise InputError(f"not UTF-8 ({reason}); save the table as 'CSV UTF-8'") from reason
