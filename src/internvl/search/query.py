"""The nearest pictures of an index: by cosine, among all of them or those that a filter lets through.

Knows no model and no pictures. Shape letters: B vectors, E their width, Q queries, K results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from internvl.errors import InputError
from internvl.search.extras import import_faiss, import_pyarrow
from internvl.search.index import EFFORT_SEARCH, describe, entry_schema, unit

MAX_RESULTS = 10_000
MAX_TABLE_BYTES = 1 << 31
"""Of what faiss computes from an "ivfpq" index while it reads it (its own limit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """`key` is a glob over whole keys (* and ? stand for slashes too, [abc] for one of these); upper and
    lower case differ. `where` names columns of the metadata and their values as text; where a column holds a
    list, one of its values. All must hold."""

    key: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.key is not None or bool(self.where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One result: cosine similarity, and the picture's name, metadata, and place in the embeddings."""

    score: float
    key: str
    metadata: Mapping[str, Any]
    folder: str
    row: int
    picture: int


class Index:
    """An index in memory. Raises InputError for a folder that holds none, or files that do not fit.

    Files of an index are to be trusted like a program: faiss reads them without full checks.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.description = describe(folder)
        files = folder / self.description.files
        self._index = _read_faiss(files.with_name(f"{files.name}.faiss"))
        self._entries = _read_entries(files.with_name(f"{files.name}.parquet"))
        sizes = (self._index.ntotal, self._index.d, self._entries.num_rows)
        wanted = (self.description.count, self.description.width, self.description.count)
        folders = self._entries["folder"].to_numpy()
        if sizes != wanted or not ((folders >= 0) & (folders < len(self.description.folders))).all():
            raise InputError(f"{folder} is damaged: vectors, width and entries are {sizes}, not {wanted}")

    def __len__(self) -> int:
        return self.description.count

    def search(self, queries_QE: NDArray[Any], k: int = 10, *, only: Filter | None = None) -> list[list[Hit]]:
        """The `k` most similar pictures for each query (Q, E), the best first; fewer where fewer pass `only`.

        With a filter every vector that passes is compared, whatever the kind of the index, so nothing near is
        missed; an "ivfpq" index compares codes. Raises InputError.
        """
        if queries_QE.ndim != 2 or queries_QE.shape[1] != self.description.width:
            raise InputError(
                f"queries of shape {queries_QE.shape}; the index holds vectors {self.description.width} wide"
            )
        if not 1 <= k <= MAX_RESULTS:
            raise InputError(f"results count from 1 to {MAX_RESULTS}, got {k}")
        k = min(k, len(self))
        scores_QK, ids_QK = self._nearest(unit(queries_QE), k, only or Filter())
        return [
            [self._hit(float(score), int(id)) for score, id in zip(scores_K, ids_K, strict=True) if id >= 0]
            for scores_K, ids_K in zip(scores_QK, ids_QK, strict=True)
        ]

    def _nearest(
        self, queries_QE: NDArray[np.float32], k: int, only: Filter
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        faiss, kind = import_faiss(), self.description.kind
        found: tuple[NDArray[np.float32], NDArray[np.int64]]
        if not only:
            settings = None
            if kind == "hnsw":
                settings = faiss.SearchParametersHNSW(efSearch=max(EFFORT_SEARCH, 2 * k))
            elif kind == "ivfpq":
                settings = faiss.SearchParametersIVF(nprobe=max(8, self._index.nlist // 32))
            found = self._index.search(queries_QE, k, params=settings)
            return found
        # The selector keeps a pointer into these bits.
        bits = np.packbits(self._passing(only), bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        if kind == "ivfpq":
            settings = faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nlist)
            found = self._index.search(queries_QE, k, params=settings)
        else:
            flat = faiss.downcast_index(self._index.storage) if kind == "hnsw" else self._index
            found = flat.search(queries_QE, k, params=faiss.SearchParameters(sel=selector))
        return found

    def _passing(self, only: Filter) -> NDArray[np.bool_]:
        passes_B = np.ones(len(self), dtype=bool)
        if only.key is not None:
            matches = re.compile(translate(only.key)).match
            passes_B &= [matches(key) is not None for key in self._entries["key"].to_pylist()]
        if only.where:
            metadata = self._entries["metadata"].to_pylist()
            for index in np.flatnonzero(passes_B):
                passes_B[index] = _agrees(_object(metadata[index]), only.where)
        return passes_B

    def _hit(self, score: float, id: int) -> Hit:
        row = {name: self._entries[name][id].as_py() for name in self._entries.column_names}
        return Hit(
            score=score,
            key=row["key"],
            metadata=_object(row["metadata"]),
            folder=self.description.folders[row["folder"]],
            row=row["row"],
            picture=row["picture"],
        )


def _agrees(metadata: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    return all(name in metadata and value in _texts(metadata[name]) for name, value in where.items())


def _texts(value: Any) -> list[str]:
    """A value, or each of a list, as the text that `--where` compares: true, 3, null, Berlin."""
    values = value if isinstance(value, list) else [value]
    return [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"the metadata in the index is no JSON: {reason}") from reason
    if not isinstance(value, dict):
        raise InputError(f"the metadata in the index is a {type(value).__name__}, not an object")
    return value


def _read_faiss(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no such file: {path}; make the index again")
    faiss = import_faiss()
    before = faiss.get_deserialization_vector_byte_limit()
    try:
        # A header may claim any size; nothing in a file is larger than the file, and tables have a limit.
        faiss.set_deserialization_vector_byte_limit(path.stat().st_size + MAX_TABLE_BYTES)
        with path.open("rb") as file:  # faiss knows no paths that are not UTF-8, and pyarrow neither
            return faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except RuntimeError as reason:
        raise InputError(f"{path} is not readable by faiss; make the index again: {reason}") from reason
    finally:
        faiss.set_deserialization_vector_byte_limit(before)


def _read_entries(path: Path) -> Any:
    pa = import_pyarrow()
    try:
        with path.open("rb") as stored, pa.parquet.ParquetFile(stored) as file:
            return file.read(entry_schema().names).cast(entry_schema())
    except (pa.ArrowException, OSError, ValueError) as reason:
        raise InputError(f"{path} is not readable; make the index again: {reason}") from reason
