"""Rows of a CSV or TSV file; its first line names the columns.

A record may hold line breaks inside quotes. Knows cells and byte offsets; not what a column means.
"""

from __future__ import annotations

import codecs
import csv
import io
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from internvl.data.offsets import MAX_RECORD_BYTES, Offsets, as_offsets, open_file
from internvl.errors import InputError


class TableRows:
    """A table in UTF-8. The separator is a tab in .tsv files; else comma, semicolon or tab, by the first
    line.

    Column names are taken in lower case. Only byte offsets are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with open_file(path) as file:
            first = file.readline(MAX_RECORD_BYTES)
        is_tabbed = path.suffix.lower() == ".tsv"
        self._separator = "\t" if is_tabbed else max(",;\t", key=first.decode("latin-1").count)
        self.offsets = _index(path, self._separator)
        if not len(self.offsets):
            raise InputError(f"{path} is empty; its first line must name the columns")
        try:
            cells = self._cells(_decode(self.offsets.read(0).removeprefix(codecs.BOM_UTF8)))
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
            cells = self._cells(_decode(self.offsets.read(index + 1)))
        except InputError as reason:
            raise InputError(f"{self.where(index)}: {reason}") from reason
        if len(cells) != len(self._columns):
            raise InputError(
                f"{self.where(index)}: {len(cells)} cells for the {len(self._columns)} columns "
                f"{', '.join(self._columns)}; quote cells that hold a {self._separator!r}"
            )
        return dict(zip(self._columns, cells, strict=True))

    def where(self, index: int) -> str:
        return f"{self.offsets.path}, line {self.offsets.line(index + 1)}"

    def _cells(self, record: str) -> list[str]:
        try:
            return next(csv.reader(io.StringIO(record), delimiter=self._separator, strict=True))
        except csv.Error as reason:
            raise InputError(f"not a row of a table: {reason}") from reason


def _decode(record: bytes) -> str:
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise InputError(f"not UTF-8 ({reason}); save the table as 'CSV UTF-8'") from reason


class _Lines:
    """The lines of a file as `csv.reader` takes them, and how many bytes it has taken.

    One character a byte: quotes, separators and line breaks are the same bytes in UTF-8.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.position = file, 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_RECORD_BYTES):
            self.position += len(line)
            yield line.decode("latin-1")


def _index(path: Path, separator: str) -> Offsets:
    """All records, the column names too. One that is not well formed counts: reading it raises."""
    starts, others = array("Q"), array("Q")
    with open_file(path) as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        while True:
            start, before = lines.position, reader.line_num
            try:
                is_blank = not next(reader)
            except StopIteration:
                break
            except csv.Error:
                is_blank = False
            if not is_blank:
                starts.append(start)
            others.extend([len(starts)] * (reader.line_num - before - (not is_blank)))
    starts.append(lines.position)
    return Offsets(path, as_offsets(starts), others)
