"""Rows of a tar shard in the WebDataset layout: adjacent files that share a name up to its first dot.

Pictures become "image", text files "caption", and a JSON object is the row itself. Other files are passed
over. Nothing is unpacked to disk. Knows tar and byte offsets; no pixels.
"""

from __future__ import annotations

import io
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from internvl.data.offsets import MAX_RECORD_BYTES, Offsets, as_offsets, open_file
from internvl.data.source_folder import PICTURES
from internvl.data.source_json import parse_json
from internvl.errors import InputError

_BLOCK = 512


class TarRows:
    """An uncompressed shard. Only the byte offsets of its records are kept in memory."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.offsets = _index(path)

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, index: int) -> Mapping[str, Any]:
        """The files of a record as one row; "id" is their common name. Raises InputError for a broken one."""
        try:
            return _as_row(_read_members(self.offsets.read(index)))
        except InputError as reason:
            raise InputError(f"{self.where(index)}: {reason}") from reason

    def where(self, index: int) -> str:
        return f"{self.offsets.path}, record {index + 1} at byte {self.offsets.starts[index]}"


class _Headers:
    """A file as `tarfile` walks over its headers: a header may claim to be as large as the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_RECORD_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, the limit is {MAX_RECORD_BYTES}")
        return self._file.read(size)


def _index(path: Path) -> Offsets:
    starts = array("Q")
    last = None
    with (
        open_file(path) as file,
        _errors(f"{path}: "),
        tarfile.TarFile(
            fileobj=_Headers(file)  # type: ignore[arg-type]  # it needs no more for reading
        ) as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
            key, _ = _split(member.name)
            if not member.isdir() and key != last:
                starts.append(member.offset)
                last = key
        end = tar.offset
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise InputError(
                f"{path} has no end mark after {len(starts)} records, at byte {end}: it is cut off or broken"
            )
    starts.append(end)
    return Offsets(path, as_offsets(starts))


def _split(name: str) -> tuple[str, str]:
    """ "a/b.0.jpg" as "a/b" and ".jpg"."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    kind = suffix.rpartition(".")[2].lower()
    return f"{folder}{slash}{stem}", f".{kind}" if kind else ""


def _read_members(record: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Name up to the first dot, kind, and content of each file of a record."""
    with _errors(), tarfile.TarFile(fileobj=io.BytesIO(record)) as tar:
        for member in tar:
            if member.isdir():
                continue
            file: IO[bytes] | None = tar.extractfile(member) if member.isreg() else None
            if file is None or member.issparse():
                raise InputError(f"{member.name!r} is not a regular file")
            yield *_split(member.name), file.read()
        if tar.offset < len(record):
            raise InputError(f"the file header at byte {tar.offset} of the record is broken")


def _as_row(members: Iterator[tuple[str, str, bytes]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    pictures: list[bytes] = []
    texts: list[str] = []
    others: list[str] = []
    for key, kind, content in members:
        row.setdefault("id", key.encode("utf-8", "replace").decode("utf-8"))
        if kind in PICTURES:
            pictures.append(content)
        elif kind == ".txt":
            texts.append(_decode(content))
        elif kind == ".json":
            row.update(_object(content))
        else:
            others.append(kind)
    if len(row) == 1 and not (pictures or texts):
        raise InputError(f"neither picture, text nor JSON among its files ({', '.join(others)})")
    if pictures:
        row.pop("images", None)
        row["image"] = pictures[0] if len(pictures) == 1 else pictures
    if texts and not row.get("caption"):
        row |= {"caption": texts[0]} if len(texts) == 1 else {"captions": texts}
    return row


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as reason:
        raise InputError(f"its text is not UTF-8: {reason}") from reason


def _object(content: bytes) -> dict[str, Any]:
    value = parse_json(content)
    if not isinstance(value, dict):
        raise InputError(f"its JSON is a {type(value).__name__}, not an object")
    return value


@contextmanager
def _errors(where: str = "") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (tarfile.TarError, ValueError, EOFError, RecursionError) as reason:
        raise InputError(f"{where}not a readable tar: {reason}") from reason
