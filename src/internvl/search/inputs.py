"""What is to be embedded: folders of pictures, lists, tar shards, parquet and other files, as rows in order.

The order depends on names alone. Knows files and columns; decodes no picture.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from internvl.data.media import listed, resolve
from internvl.data.offsets import index_lines
from internvl.data.source_folder import PICTURES, Described, Pictures
from internvl.data.sources import Source, open_source
from internvl.errors import InputError
from internvl.search.columns import IMAGE_COLUMNS, Columns, key_of, metadata_of, readable

MAX_PICTURES = 1000
"""Of one row."""

DESCRIPTIONS = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """Picture number `picture` of a row. `source` is what `load_image` takes, `metadata` a JSON object."""

    picture: int
    key: str
    source: Any
    metadata: str


class Inputs:
    """The rows of all inputs, one after the other. Safe under threads.

    With several inputs a key begins with the name of its input. Raises InputError for an input that is
    missing, of an unknown kind or empty, and for columns that no input has.
    """

    def __init__(self, paths: Sequence[str | Path], columns: Columns | None = None) -> None:
        if not paths:
            raise InputError("name at least one folder or file of pictures")
        self.paths = tuple(Path(os.path.abspath(path)) for path in paths)  # noqa: PTH100  # links stay
        self.columns = columns or Columns()
        self._parts = tuple(_open_all(self.paths))
        self._ends = tuple(accumulate(len(part.source) for part in self._parts))
        self._check_columns()

    def __len__(self) -> int:
        return self._ends[-1]

    def items(self, row: int) -> list[Item]:
        """The pictures of a row, nearly always one. Raises InputError for a broken row."""
        part, index = self._find(row)
        cells = part.source.row(index)
        sources = listed(cells, *((self.columns.image,) if self.columns.image else IMAGE_COLUMNS))
        if not 1 <= len(sources) <= MAX_PICTURES:
            raise InputError(f"{len(sources)} pictures in one row; 1 to {MAX_PICTURES} are read")
        key = f"{part.prefix}{key_of(cells, sources, self.columns, index)}"
        metadata = metadata_of(cells, self.columns)
        return [
            Item(
                picture=number,
                key=readable(key if len(sources) == 1 else f"{key}#{number}"),
                source=resolve(source, part.root),
                metadata=metadata,
            )
            for number, source in enumerate(sources)
        ]

    def find(self, key: str) -> Path | None:
        """The file that a key names, where the inputs are folders and files of pictures."""
        for part in self._parts:
            path = part.root / key.removeprefix(part.prefix)
            is_inside = path.is_relative_to(part.root) and ".." not in path.parts
            if part.is_named and key.startswith(part.prefix) and is_inside and path.is_file():
                return path
        return None

    def where(self, row: int) -> str:
        """The place of a row as reports name it."""
        part, index = self._find(row)
        return readable(part.source.where(index))

    def fallback_key(self, row: int) -> str:
        """What a row is called that cannot be read."""
        part, index = self._find(row)
        return readable(f"{part.prefix}{part.source.name}:{index + 1}")

    @cached_property
    def fingerprint(self) -> str:
        """Stands for names, sizes and times of change of all files of the inputs, but of no picture that a
        row names by its path."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self._parts:
            digest.update(f"{part.prefix!r} {len(part.source)}\n".encode("utf-8", "surrogateescape"))
            for path in part.files():
                try:
                    status = path.stat()
                except OSError:
                    continue  # the name is in the digest; reading the picture will say that it is gone
                line = f"{path.name!r} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def _find(self, row: int) -> tuple[_Part, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"the inputs have {len(self)} rows, there is no row {row}")
        number = bisect_right(self._ends, row)
        return self._parts[number], row - (self._ends[number - 1] if number else 0)

    def _check_columns(self) -> None:
        """A column that the first row of no input has is a typing error."""
        wanted = [self.columns.key, self.columns.image, *(self.columns.metadata or ())]
        if not any(wanted):
            return
        known: dict[str, None] = {}
        for part in self._parts:
            try:
                known.update(dict.fromkeys(part.source.row(0)))
            except InputError:
                return  # it will be in the table of errors
        for name in filter(None, wanted):
            if name not in known:
                raise InputError(f"no input has a column {name!r}; there are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class _Part:
    """One input: its rows, the folder that paths in them start from, and what its keys begin with."""

    source: Source
    path: Path
    root: Path
    prefix: str

    @property
    def is_named(self) -> bool:
        """Whether keys are paths of pictures from `root`."""
        return isinstance(self.source, Pictures | _Files)

    def files(self) -> Iterator[Path]:
        """The files whose change would change the rows."""
        if self.is_named:
            yield from (Path(self.source.where(index)) for index in range(len(self.source)))
        elif self.path.is_dir():
            yield from sorted(file for file in self.path.iterdir() if file.is_file())
        elif self.path.exists():
            yield self.path
        else:
            yield from sorted(self.path.parent.glob(self.path.name))


class _Files:
    """Pictures that were named one by one; keys are their paths from the folder that holds them all."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name = "files"
        self.root = Path(os.path.commonpath([path.parent for path in paths]))
        self._names = tuple(str(path.relative_to(self.root)) for path in paths)

    def __len__(self) -> int:
        return len(self._names)

    def row(self, index: int) -> Mapping[str, Any]:
        return {"image": self._names[index]}

    def where(self, index: int) -> str:
        return str(self.root / self._names[index])


class _PathLines:
    """A text file with the path of a picture in each line; blank lines are passed over."""

    def __init__(self, path: Path) -> None:
        self.name, self._offsets = path.name, index_lines(path)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> Mapping[str, Any]:
        return {"image": os.fsdecode(self._offsets.read(index).removeprefix(b"\xef\xbb\xbf").strip())}

    def where(self, index: int) -> str:
        return f"{self._offsets.path}, line {self._offsets.line(index)}"


def _open_all(paths: Sequence[Path]) -> Iterator[_Part]:
    opened = [
        part
        for are_pictures, group in groupby(paths, lambda path: path.suffix.lower() in PICTURES)
        for part in (_open_files(tuple(group)) if are_pictures else map(_open, group))
    ]
    names: Counter[str] = Counter()
    for source, path, root in opened:
        names[source.name] += 1
        number = f"-{names[source.name]}" if names[source.name] > 1 else ""
        yield _Part(source, path, root, f"{source.name}{number}/" if len(opened) > 1 else "")


def _open_files(paths: tuple[Path, ...]) -> Iterable[tuple[Source, Path, Path]]:
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise InputError(f"no such file or folder: {missing}")
    files = _Files(paths)
    return [(files, files.root, files.root)]


def _open(path: Path) -> tuple[Source, Path, Path]:
    source: Source
    if path.is_dir():
        return _open_folder(path), path, path
    if path.suffix.lower() == ".txt" and path.exists():
        source = _PathLines(path)
        if not len(source):
            raise InputError(f"{path} names no pictures; write one path in each line")
    else:
        source = open_source(path)
    return source, path, path.parent


def _open_folder(folder: Path) -> Source:
    """Rows of metadata.jsonl or .csv, or all pictures, or shards. Captions beside pictures are not read."""
    described = [folder / name for name in DESCRIPTIONS if (folder / name).is_file()]
    if len(described) > 1:
        raise InputError(f"{folder} has {' and '.join(DESCRIPTIONS)}; name the one to read")
    if described:
        return Described(described[0])
    pictures = Pictures(folder)
    if not len(pictures):
        return open_source(folder)
    kinds = (".tar", ".parquet")
    shards = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in kinds)
    if shards:
        raise InputError(
            f"{folder} holds {len(pictures)} pictures and {len(shards)} shards ({shards[0]}); name the "
            f"shards ({folder / '*'}{Path(shards[0]).suffix}), or move one of the two"
        )
    return pictures
