"""Where rows come from: one face over every file format, chosen by suffix or by what a folder holds.

Nothing is kept in memory but offsets. Knows files; not what a row means, no pixels, no tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from internvl.data.source_folder import Sidecars, find_captions
from internvl.data.source_json import JsonArray, JsonLines
from internvl.data.source_parquet import ParquetRows
from internvl.data.source_table import TableRows
from internvl.data.source_tar import TarRows
from internvl.errors import InputError


class Source(Protocol):
    """Rows by index. Pictures in a row are paths (relative to the root of the data set) or bytes.

    Reading is safe under threads and forks, and a row is the same whatever was read before.
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
    ".ndjson": JsonLines,
    ".json": JsonArray,
    ".csv": TableRows,
    ".tsv": TableRows,
    ".parquet": lambda path: ParquetRows([path]),
    ".tar": TarRows,
}
REMEDIES: Mapping[str, str] = {
    ".gz": "unpack it: rows are read by their offset",
    ".tgz": "unpack it to .tar: rows are read by their offset",
    ".zst": "unpack it: rows are read by their offset",
    ".zip": "unpack it and name the folder",
    ".xlsx": "save the table as CSV",
    ".arrow": "write it as parquet",
    ".pkl": "write it as JSONL; pickles are not read, they can run programs",
}


def open_source(path: Path) -> Source:
    """The rows of a file, of several shards (`shards/train-*.tar`), or of a folder.

    A folder holds pictures with captions (see `source_folder`) or shards, whose names differ only in numbers.
    Raises InputError for what is missing, cannot be read, is of an unknown kind, or has no rows.
    """
    try:
        source = _open(path)
    except OSError as reason:
        raise InputError(f"cannot read {path}: {reason}") from reason
    if not len(source):
        raise InputError(f"{path} holds no rows")
    return source


class Joined:
    """Sources one after the other, as one."""

    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name, self._sources = name, tuple(sources)
        self._ends = tuple(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Mapping[str, Any]:
        source, place = self._find(index)
        return source.row(place)

    def where(self, index: int) -> str:
        source, place = self._find(index)
        return source.where(place)

    def _find(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, there is no row {index}")
        number = bisect_right(self._ends, index)
        return self._sources[number], index - (self._ends[number - 1] if number else 0)


def _open(path: Path) -> Source:
    if path.is_dir():
        return _open_folder(path)
    if "*" in path.name and not path.exists():
        return _open_shards(path, sorted(file for file in path.parent.glob(path.name) if file.is_file()))
    return _open_file(path)


def _open_file(path: Path) -> Source:
    if not path.exists():
        where = "" if path.is_absolute() else f" (in {Path.cwd()})"
        raise InputError(f"no such file or folder: {path}{where}")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        remedy = REMEDIES.get(suffix, f"known are {', '.join(FORMATS)}, and folders")
        raise InputError(f"{path}: not a kind of data that is read here; {remedy}")
    return FORMATS[suffix](path)


def _open_folder(folder: Path) -> Source:
    captions = find_captions(folder)
    if captions is not None:
        return captions
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in FORMATS and file.is_file())
    kinds = {re.sub(r"\d+", "*", file.name) for file in files}
    if len(kinds) > 1:
        raise InputError(f"{folder} holds different data; name one of {', '.join(sorted(kinds))}")
    return _open_shards(folder, files) if files else _open_pictures(folder)


def _open_shards(path: Path, files: Sequence[Path]) -> Source:
    if not files:
        raise InputError(f"no file is called {path}")
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) != 1:
        raise InputError(f"{path} names files of {len(suffixes)} kinds ({', '.join(sorted(suffixes))})")
    if suffixes == {".parquet"}:
        return ParquetRows(files)
    return (
        _open_file(files[0]) if len(files) == 1 else Joined(path.name, [_open_file(file) for file in files])
    )


def _open_pictures(folder: Path) -> Source:
    pictures = Sidecars(folder)
    if not len(pictures):
        raise InputError(f"{folder} holds neither pictures nor rows ({', '.join(FORMATS)})")
    if not any(folder.rglob("*.txt")):
        raise InputError(
            f"{folder} holds {len(pictures)} pictures and no text; add a .txt beside each, captions.txt with "
            "lines 'name,caption', or metadata.jsonl with file_name and text"
        )
    return pictures
