"""What a run reads: the published meta JSON, or one file or folder, as data sets.

A meta file is `{"name": {"root": folder of the pictures, "annotation": file of the rows, "repeat_time":
number, "data_augment": bool, "max_dynamic_patch": int, "length": int}, ...}`. Knows files and their options;
not what a row means.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from internvl.data.source_json import load_json
from internvl.data.sources import Source, open_source
from internvl.errors import InputError

MAX_META_BYTES = 16 << 20
MAX_PER_EPOCH = 1 << 40
"""Records of one data set: those of all that a meta file can list are still counted in 63 bits."""
MAX_WEIGHT = 1e100
FIELDS: tuple[str, ...] = (
    "root",
    "annotation",
    "repeat_time",
    "data_augment",
    "max_dynamic_patch",
    "length",
    "weight",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Rows, and how they are used.

    `root` is the folder that paths in rows start from. `repeat` below 1 keeps that share of the rows, the
    first ones; a whole number takes each row so often an epoch. `augment` asks for JPEG augmentation,
    `max_tiles` limits the tiles of a picture, `weight` is the share under sampling by weight.
    """

    name: str
    source: Source
    root: Path
    repeat: float = 1.0
    augment: bool = False
    max_tiles: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.repeat) or self.repeat <= 0:
            raise InputError(f"{self.name}: repeat_time must be above 0, got {self.repeat}")
        if self.repeat > 1 and self.repeat != int(self.repeat):
            raise InputError(f"{self.name}: repeat_time above 1 must be a whole number, got {self.repeat}")
        if not self.size:
            raise InputError(f"{self.name}: repeat_time {self.repeat} of {len(self.source)} rows leaves none")
        if self.per_epoch > MAX_PER_EPOCH:
            raise InputError(
                f"{self.name}: repeat_time {self.repeat} of {self.size} rows is more than {MAX_PER_EPOCH} "
                "records an epoch: lower it"
            )
        if self.max_tiles is not None and self.max_tiles < 1:
            raise InputError(f"{self.name}: max_dynamic_patch counts from 1, got {self.max_tiles}")
        if self.weight is not None and not 0 < self.weight <= MAX_WEIGHT:
            raise InputError(
                f"{self.name}: a weight must be above 0 and at most {MAX_WEIGHT}, got {self.weight}"
            )

    @property
    def size(self) -> int:
        """The rows in use: all, or the first share of them, rounded down."""
        return int(len(self.source) * min(self.repeat, 1.0))

    @property
    def per_epoch(self) -> int:
        """Records of an epoch in which every row comes as often as `repeat` says."""
        return self.size * max(1, int(self.repeat))


def open_data(path: str | Path) -> tuple[DataSet, ...]:
    """The data sets of a meta JSON, or the one of a file or folder of rows.

    Relative paths in a meta file start from the folder it lies in. Raises InputError naming the data set and
    field.
    """
    path = Path(path)
    if path.suffix.lower() != ".json" or not _is_meta(path):
        source = open_source(path)
        root = path if path.is_dir() else path.parent
        return (DataSet(name=path.stem or path.name, source=source, root=root),)
    entries = load_json(path, MAX_META_BYTES, "a meta file lists data sets, it does not hold the rows")
    if not entries:
        raise InputError(f"{path} names no data sets")
    return tuple(_open_entry(name, entry, path) for name, entry in entries.items())


def _is_meta(path: Path) -> bool:
    """Whether a JSON file is one object, not an array of rows."""
    try:
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    except OSError as reason:
        raise InputError(f"cannot read {path}: {reason}") from reason


def _open_entry(name: str, entry: object, meta: Path) -> DataSet:
    where = f"{meta}, data set {name!r}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected an object with 'annotation', got {type(entry).__name__}")
    if unknown := [key for key in entry if key not in FIELDS]:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    annotation = _resolve(_text(entry, "annotation", where), meta, where)
    try:
        source = open_source(annotation)
    except InputError as reason:
        is_there = os.path.exists(annotation)  # noqa: PTH110  # Path's raises for names that are too long
        hint = "" if is_there else "; relative paths start from the folder of the meta file"
        raise InputError(f"{where}: {reason}{hint}") from reason
    return DataSet(
        name=name,
        source=source,
        root=_resolve(_text(entry, "root", where, ""), meta, where),
        repeat=_number(entry, "repeat_time", where, 1.0),
        augment=_flag(entry, "data_augment", where),
        max_tiles=_whole(entry, "max_dynamic_patch", where),
        weight=None if entry.get("weight") is None else _number(entry, "weight", where, 1.0),
    )


def _resolve(path: str, meta: Path, where: str) -> Path:
    if "://" in path:
        raise InputError(f"{where}: {path!r} is not on this machine; copy or mount it and give its path")
    return meta.parent / path


def _text(entry: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or "\0" in value:
        raise InputError(f"{where}: {key!r} must be a path, got {value!r}")
    return value


def _number(entry: Mapping[str, Any], key: str, where: str, default: float) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {key!r} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError as reason:
        raise InputError(
            f"{where}: {key!r} has {len(str(abs(value)))} digits, at most 308 are read"
        ) from reason


def _whole(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    value = entry.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"{where}: {key!r} must be a whole number, got {value!r}")
    return value


def _flag(entry: Mapping[str, Any], key: str, where: str) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key!r} must be true or false, got {value!r}")
    return value
