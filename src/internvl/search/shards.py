"""A shard as bytes and back: the vectors of one unit with their keys, as parquet or as .npy beside .jsonl.

The same rows give the same bytes. Knows no disk. Shape letters: B pictures, E width of the vectors.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvl.errors import InputError
from internvl.search.extras import import_pyarrow
from internvl.search.job import Form, Job, Unit

COLUMNS: Mapping[str, type] = {"row": int, "picture": int, "key": str, "metadata": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The picture of a vector: its row in the inputs, its number in the row, its name, and a JSON object."""

    row: int
    picture: int
    key: str
    metadata: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A picture that has no vector: `error` is the kind, `reason` the message, `where` the row's place.

    `picture` is None where the whole row cannot be read.
    """

    row: int
    picture: int | None
    key: str
    where: str
    error: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The files of a unit by name. The receipt lists them with their checksums, and all failures: a unit is
    done when its receipt is on disk."""

    unit: Unit
    files: Mapping[str, bytes]
    receipt: bytes


def make_shard(
    unit: Unit, job: Job, entries: Sequence[Entry], vectors_BE: NDArray[Any], failures: Sequence[Failure]
) -> Shard:
    """Vectors and failures in the order of the rows."""
    vectors_BE = np.ascontiguousarray(vectors_BE, dtype=f"<{np.dtype(job.precision).str[1:]}")
    if vectors_BE.shape != (len(entries), job.width):
        raise InputError(
            f"{len(entries)} pictures of width {job.width}, but vectors of shape {vectors_BE.shape}"
        )
    write = _write_parquet if job.form == "parquet" else _write_npy
    files = {f"{unit.name}.{suffix}": content for suffix, content in write(entries, vectors_BE).items()}
    receipt = {
        **asdict(unit),
        "vectors": len(entries),
        "files": [describe(name, content) for name, content in files.items()],
        "failures": [asdict(failure) for failure in failures],
    }
    return Shard(unit=unit, files=files, receipt=dump(receipt))


def read_shard(
    files: Sequence[bytes], form: Form, count: int, width: int, where: str
) -> tuple[list[Entry], NDArray[np.float32]]:
    """Entries and vectors (B, E) of the files that `make_shard` made, in its order. Raises InputError."""
    read = _read_parquet if form == "parquet" else _read_npy
    try:
        columns, vectors_BE = read(files, width)
        entries = [
            Entry(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*columns.values(), strict=True)
        ]
    except (ValueError, TypeError, KeyError, OSError) as reason:
        raise InputError(f"{where}: not a shard of embeddings: {reason}") from reason
    is_sound = all(isinstance(getattr(one, name), kind) for one in entries for name, kind in COLUMNS.items())
    if vectors_BE.shape != (count, width) or len(entries) != count or not is_sound:
        raise InputError(
            f"{where}: {len(entries)} entries and vectors {vectors_BE.shape}, not {count, width}"
        )
    return entries, vectors_BE.astype(np.float32)


def describe(name: str, content: bytes) -> dict[str, Any]:
    """A file as receipts and manifests list it."""
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def dump(value: Mapping[str, Any]) -> bytes:
    """A JSON document as it is written to disk."""
    return f"{json.dumps(value, indent=1)}\n".encode()


def _write_parquet(entries: Sequence[Entry], vectors_BE: NDArray[Any]) -> dict[str, bytes]:
    pa = import_pyarrow()
    kind = pa.float16() if vectors_BE.dtype == np.float16 else pa.float32()
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors_BE.reshape(-1), kind), vectors_BE.shape[1])
    types = {"row": pa.int64(), "picture": pa.int32(), "key": pa.string(), "metadata": pa.string()}
    arrays = [pa.array([getattr(one, name) for one in entries], kind) for name, kind in types.items()]
    table = pa.Table.from_arrays([*arrays, embedding], names=[*types, "embedding"])
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink, compression="zstd", use_dictionary=False)
    return {"parquet": sink.getvalue()}


def _read_parquet(files: Sequence[bytes], width: int) -> tuple[dict[str, list[Any]], NDArray[Any]]:
    pa = import_pyarrow()
    (content,) = files
    try:
        table = pa.parquet.read_table(io.BytesIO(content), columns=[*COLUMNS, "embedding"])
    except pa.ArrowException as reason:
        raise ValueError(str(reason)) from reason
    kind = table.schema.field("embedding").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise ValueError(f"its vectors are {kind}")
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return {name: table[name].to_pylist() for name in COLUMNS}, flat.reshape(-1, width)


def _write_npy(entries: Sequence[Entry], vectors_BE: NDArray[Any]) -> dict[str, bytes]:
    sink = io.BytesIO()
    np.save(sink, vectors_BE, allow_pickle=False)
    lines = "".join(f"{json.dumps(asdict(one), ensure_ascii=False)}\n" for one in entries)
    return {"npy": sink.getvalue(), "jsonl": lines.encode()}


def _read_npy(files: Sequence[bytes], width: int) -> tuple[dict[str, list[Any]], NDArray[Any]]:
    content, lines = files
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its .npy is not of version 1.0")
    shape, is_fortran, kind = np.lib.format.read_array_header_1_0(file)
    body = content[file.tell() :]
    if is_fortran or kind.kind != "f" or len(shape) != 2 or len(body) != shape[0] * shape[1] * kind.itemsize:
        raise ValueError(f"its .npy has {len(body)} bytes for {kind} {shape}")
    rows = [json.loads(line) for line in lines.decode("utf-8").split("\n")[:-1]]
    return {name: [row[name] for row in rows] for name in COLUMNS}, np.frombuffer(body, kind).reshape(shape)
