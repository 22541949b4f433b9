"""Where the records of a CSV or TSV file begin: at every line that no quoted cell reaches into.

`csv.reader` does not say where a record ends that it cannot read, so the quotes are followed here. Knows
quotes, separators and line breaks, which are the same bytes in UTF-8; not what a cell holds.
"""

from __future__ import annotations

import codecs
import re
from array import array
from pathlib import Path

from internvl.data.offsets import MAX_RECORD_BYTES, Offsets, as_offsets, open_file
from internvl.errors import InputError

QUOTE = b'"'

SHORT = 64 << 10
"""Bytes of a line for which a pattern may keep the way it came, to turn back."""


def index_table(path: Path, separator: str) -> Offsets:
    """All records, the column names too, without a byte order mark; empty lines are passed over.

    A record that is not well formed, or is over the limit, counts if its end is certain: reading it raises.
    Raises InputError where quotes leave the end open: a cell that is never closed, text after the quote that
    closes a cell (unless all quotes of the record are in one line, and even in number), a record over the
    limit with quotes in it. Going on would take the inside of a cell for rows, or rows for the inside of one.
    """
    with open_file(path) as file:
        mark = file.read(len(codecs.BOM_UTF8))
        records = _Records(path, separator.encode(), len(mark) if mark == codecs.BOM_UTF8 else 0)
        file.seek(records.position)
        is_cut = False
        while piece := file.readline(MAX_RECORD_BYTES + 1):
            if is_cut:
                records.lengthen(piece)
            else:
                records.add(piece)
            is_cut = len(piece) > MAX_RECORD_BYTES and not piece.endswith(b"\n")
    return records.finish()


class _Records:
    """The records of the lines so far, which end at byte `position`."""

    def __init__(self, path: Path, separator: bytes, position: int) -> None:
        self.position = position
        self._path, self._separator = path, separator
        self._starts, self._others = array("Q"), array("Q")
        # The number of the line in which a quoted cell begins that is not closed yet; 0 if all are.
        self._opened = 0
        # A quote opens a cell at its start only, and a doubled one does not close it. `*+` keeps nothing for
        # turning back: a cell of millions of quotes would take gigabytes.
        mark, quoted = re.escape(separator), rb'"[^"]*+(?:""[^"]*+)*+'
        # Group 1 is the quote that closes the cell, if it is there; group 2 is text after it.
        self._quoted = re.compile(rb'%b%b(?:(")([^%b])?)?' % (mark, quoted, mark))
        # All cells of a line at once, which takes a third of the time. Group 1 is one that stays open.
        cell = rb'(?:%b"|[^"%b\r\n][^%b\r\n]*+)?' % (quoted, mark, mark)
        self._cells = re.compile(rb"(?:%b%b)*(?:%b[\r\n]*\Z|(%b)\Z)" % (cell, mark, cell, quoted))

    def add(self, line: bytes) -> None:
        """Takes the next line; of one over the limit, the beginning."""
        opened, has_quotes = self._opened, QUOTE in line
        if opened or (not line.strip(b"\r\n") and len(line) <= MAX_RECORD_BYTES):
            self._others.append(len(self._starts))
        else:
            self._starts.append(self.position)
        self.position += len(line)
        if (opened or has_quotes) and self.position - self._starts[-1] > MAX_RECORD_BYTES:
            raise self._refusal(opened or self._line, _too_long())
        if has_quotes:
            self._follow(line)

    def lengthen(self, piece: bytes) -> None:
        """Takes more of a line over the limit."""
        self.position += len(piece)
        if QUOTE in piece:
            raise self._refusal(self._line, _too_long())

    def finish(self) -> Offsets:
        if self._opened:
            raise self._refusal(self._opened, "the quote that opens a cell here is never closed")
        self._starts.append(self.position)
        return Offsets(self._path, as_offsets(self._starts), self._others)

    @property
    def _line(self) -> int:
        """The number of the last line: in each, a record begins or not."""
        return len(self._starts) + len(self._others)

    def _follow(self, line: bytes) -> None:
        """Finds the cell that is open after a line with quotes, if one is."""
        before, number = self._opened, self._line
        cells = QUOTE + line if before else line
        found = self._cells.match(cells) if len(line) <= SHORT else None
        if found is None:
            self._opened = self._follow_each(cells.rstrip(b"\n"), line.count(QUOTE))
        elif found[1] is None:
            self._opened = 0
        elif found.start(1) or not before:
            self._opened = number

    def _follow_each(self, cells: bytes, num_quotes: int) -> int:
        """The line of the cell that is open after `cells`, 0 if none is; for all lines."""
        before, number = self._opened, self._line
        # CR alone is an error outside of quoted cells, which reading the record finds, and text inside.
        cells = self._separator + cells.replace(b"\r", self._separator)
        opened, began, is_followed = 0, before or number, False
        for cell in self._quoted.finditer(cells):
            opened, began = 0 if cell.lastindex else began, number
            is_followed = is_followed or cell.lastindex == 2
        if is_followed and (before or opened or num_quotes % 2):
            what = f"text follows the quote that closes a cell in line {number}"
            raise self._refusal(before or number, what)
        return opened

    def _refusal(self, line: int, what: str) -> InputError:
        return InputError(
            f"{self._path}, line {line}: {what}, so it cannot be told which lines are rows. Close the quoted "
            'cell that begins here or take its quote out, and write quotes inside of such cells twice ("")'
        )


def _too_long() -> str:
    return f"a record with quotes is over the limit of {MAX_RECORD_BYTES} bytes"
