"""A job of embedding as a value, and the units it falls into.

A unit is a run of rows and becomes one shard; what it holds depends on the job alone, so units can be done
in any order, anywhere, and more than once. Knows no pictures, no model and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from internvl.errors import InputError
from internvl.search.columns import Columns

Form = Literal["parquet", "npy"]
Precision = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that decides the bytes of the shards, on one kind of machine with one number of threads.

    `inputs` are absolute paths; `rows` and `fingerprint` are those of `Inputs` over them, `embedder` and
    `width` those of the `Embedder`. `shard_rows` rows of the inputs become one shard, `batch` pictures are
    computed together.
    """

    inputs: tuple[str, ...]
    columns: Columns
    rows: int
    fingerprint: str
    embedder: Mapping[str, Any]
    width: int
    form: Form = "parquet"
    precision: Precision = "float32"
    shard_rows: int = 1000
    batch: int = 8

    def __post_init__(self) -> None:
        for name in ("rows", "width", "shard_rows", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} counts from 1, got {value!r}")
        for name, values in (("form", get_args(Form)), ("precision", get_args(Precision))):
            if getattr(self, name) not in values:
                raise InputError(f"{name} is one of {', '.join(values)}, not {getattr(self, name)!r}")

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {**asdict(self), "embedder": dict(self.embedder), "inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, value: object) -> Job:
        """Raises InputError for what `as_json` does not give."""
        if not isinstance(value, dict) or value.keys() != {item.name for item in fields(cls)}:
            raise InputError(
                f"not a job of embedding: one has the fields {', '.join(item.name for item in fields(cls))}"
            )
        inputs, columns, embedder = value["inputs"], value["columns"], value["embedder"]
        if not isinstance(inputs, list) or not all(isinstance(path, str) for path in inputs):
            raise InputError("not a job of embedding: its inputs are no list of paths")
        if not isinstance(embedder, dict) or not isinstance(value["fingerprint"], str):
            raise InputError("not a job of embedding: its embedder is no object, or its fingerprint no text")
        return cls(**{**value, "inputs": tuple(inputs), "columns": _columns(columns)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Rows `start` to `stop` of the inputs; `number` counts from 0."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """What the files of its shard are called, without their endings; sorted by name is in order."""
        return f"{self.number:06d}"


def plan(job: Job) -> tuple[Unit, ...]:
    """All units, in order."""
    starts = range(0, job.rows, job.shard_rows)
    return tuple(
        Unit(number=number, start=start, stop=min(start + job.shard_rows, job.rows))
        for number, start in enumerate(starts)
    )


def _columns(value: object) -> Columns:
    if not isinstance(value, dict) or value.keys() != {item.name for item in fields(Columns)}:
        raise InputError("not a job of embedding: its columns are key, image and metadata")
    metadata = value["metadata"]
    names = [value["key"], value["image"], *(metadata if isinstance(metadata, list) else [])]
    if not all(name is None or isinstance(name, str) for name in names):
        raise InputError("not a job of embedding: columns are names")
    return Columns(
        key=value["key"], image=value["image"], metadata=None if metadata is None else tuple(metadata)
    )
