"""Rows of parquet files (pyarrow, extra "train"), in order one after the other.

A row is found through its row group, which is read as a whole; the last group stays in memory. Knows columns;
not what they mean.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from internvl.errors import InputError

MAX_GROUP_BYTES = 1 << 30
MAX_GROUP_ROWS = 1 << 31


class ParquetRows:
    """One or more files, as one source so that a single row group is kept in memory for all of them.

    The footers are read once. A row in shuffled order costs the reading of its whole group, so write groups
    of few rows. Raises InputError for files that pyarrow cannot read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self.name = paths[0].name
        self._footers = tuple(_footer(path) for path in paths)
        self._groups = tuple(
            (number, group)
            for number, footer in enumerate(self._footers)
            for group in range(footer.num_row_groups)
        )
        self._ends = tuple(accumulate(self._num_rows(number, group) for number, group in self._groups))
        self._last: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> Mapping[str, Any]:
        """Column names to values; `{"bytes": ..., "path": ...}` becomes the bytes, or else the path."""
        group, place = self._find(index)
        table = self._read_group(group, index)
        value = _guarded(lambda: table.slice(place, 1).to_pylist(), self.where(index))
        return {name: _plain(cell) for name, cell in value[0].items()}

    def where(self, index: int) -> str:
        group, place = self._find(index)
        number, part = self._groups[group]
        return f"{self._paths[number]}, row {place + 1} of row group {part}"

    def _num_rows(self, number: int, group: int) -> int:
        count = int(self._footers[number].row_group(group).num_rows)
        if not 0 <= count < MAX_GROUP_ROWS:
            raise InputError(
                f"{self._paths[number]}: row group {group} claims {count} rows, the file is broken"
            )
        return count

    def _find(self, index: int) -> tuple[int, int]:
        """Which of all row groups, and which row of it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, there is no row {index}")
        group = bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _read_group(self, group: int, index: int) -> Any:
        """The row group as a table. The file is opened anew each time: safe under threads and forks."""
        last = self._last  # one read of the attribute: another thread may replace it meanwhile
        if last is not None and last[0] == group:
            return last[1]
        number, part = self._groups[group]
        footer = self._footers[number]
        size = footer.row_group(part).total_byte_size
        if size > MAX_GROUP_BYTES:
            raise InputError(
                f"{self.where(index)}: the group has {size} bytes, the limit is {MAX_GROUP_BYTES}; "
                "write the file with a smaller row_group_size"
            )

        def read() -> Any:
            with _pyarrow().parquet.ParquetFile(self._paths[number], metadata=footer) as file:
                return file.read_row_group(part, use_threads=False)

        table = _guarded(read, self.where(index))
        if table.num_rows != (expected := self._num_rows(number, part)):
            raise InputError(f"{self.where(index)}: the group has {table.num_rows} rows, not {expected}")
        self._last = (group, table)
        return table


def _footer(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return _guarded(lambda: _pyarrow().parquet.read_metadata(path), str(path))


def _guarded(read: Callable[[], Any], where: str) -> Any:
    """What `read` returns; whatever pyarrow finds wrong is an InputError."""
    failures = (_pyarrow().ArrowException, OSError, ValueError, OverflowError)
    try:
        return read()
    except failures as reason:
        raise InputError(f"{where}: not readable as parquet: {reason}") from reason


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as reason:
        raise InputError("reading parquet needs pyarrow: pip install 'internvl[train]'") from reason
    return pyarrow


def _plain(value: Any) -> Any:
    """Pictures as the `datasets` library stores them, bytes with a path, as one of the two."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["path"] if value["bytes"] is None else value["bytes"]
    return value
