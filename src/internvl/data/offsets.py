"""Where records begin in a file: eight bytes a record, found by one pass, so that any record is one seek
away.

Files are opened for every read, so an index is safe under threads and forks. Knows bytes, not what they mean.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from internvl.errors import InputError

MAX_RECORD_BYTES = 64 << 20
"""Larger records are refused: they are a missing line break, or an attack."""


@dataclass(frozen=True, slots=True)
class Offsets:
    """Record i of N is the bytes from `starts[i]` to `starts[i + 1]`; `starts` is (N + 1,) uint64.

    `others` holds, for every line in which no record begins, the index of the record after it; it turns
    indices into line numbers.
    """

    path: Path
    starts: NDArray[np.uint64]
    others: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def line(self, index: int) -> int:
        """The number, from 1, of the line in which a record begins."""
        return index + 1 + bisect_right(self.others, index)

    def read(self, index: int) -> bytes:
        """The bytes of a record. Raises InputError over 64 MiB, or if the file shrank since it was opened;
        IndexError outside of 0..N-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} records, there is no record {index}")
        start, stop = int(self.starts[index]), int(self.starts[index + 1])
        if stop - start > MAX_RECORD_BYTES:
            raise InputError(f"a record of {stop - start} bytes, the limit is {MAX_RECORD_BYTES}")
        with open_file(self.path) as file:
            file.seek(start)
            content = file.read(stop - start)
        if len(content) < stop - start:
            raise InputError(f"bytes {start} to {stop} are gone: the file has changed since it was opened")
        return content


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file opened for reading; InputError for anything else, also if reading fails later."""
    try:
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        with path.open("rb") as file:
            yield file
    except OSError as reason:
        raise InputError(f"cannot read {path}: {reason}") from reason


def index_lines(path: Path) -> Offsets:
    """The lines of a file that are not blank. A line over the limit is a record too: reading it raises."""
    starts, others = array("Q"), array("Q")
    position, is_inside = 0, False
    with open_file(path) as file:
        while piece := file.readline(MAX_RECORD_BYTES):
            is_whole = piece.endswith(b"\n") or len(piece) < MAX_RECORD_BYTES  # else the line goes on
            if not is_inside:
                if is_whole and piece.isspace():
                    others.append(len(starts))
                else:
                    starts.append(position)
            is_inside = not is_whole
            position += len(piece)
    starts.append(position)
    return Offsets(path, as_offsets(starts), others)


def as_offsets(values: array[int]) -> NDArray[np.uint64]:
    """The same memory as numpy's, read-only."""
    offsets = np.frombuffer(values, dtype=np.uint64)
    offsets.flags.writeable = False
    return offsets
