"""An index over embeddings: cosine similarity by faiss (extra "search"), and what each vector stands for.

    index.json          what the index is, and the names of the other two; replaced last
    ID.faiss            the vectors, each of length one
    ID.parquet          for each vector: which embeddings, row, picture, key, metadata

The structure follows from the number of vectors (`choose`). Knows no model and no pictures. Shape letters:
B vectors, E their width, Q queries, K results.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from internvl.data.source_json import load_json
from internvl.errors import InputError
from internvl.search.extras import import_faiss, import_pyarrow
from internvl.search.folder import PARTIAL, locked, write_whole
from internvl.search.shards import Entry, dump
from internvl.search.vectors import Embeddings

INDEX, FORMAT = "index.json", "internvl-index-1"
OURS = re.compile(
    r"(?P<files>[0-9a-f]{16})\.(faiss|parquet)"
    rf"|\.([0-9a-f]{{16}}\.(faiss|parquet)|{re.escape(INDEX)})\.[0-9a-f]{{32}}{re.escape(PARTIAL)}"
)
"""Names of the files beside index.json, and of all three while they are written; any other is a user's."""

MAX_JSON_BYTES = 16 << 20
MAX_EXACT, MAX_HNSW = 50_000, 1_000_000
MIN_IVFPQ = 10_000
"""Vectors that 256 centroids of a product quantiser need, 39 each (faiss)."""

LINKS, EFFORT_BUILD, EFFORT_SEARCH = 32, 200, 128
"""Of HNSW (arXiv 1603.09320): M, efConstruction, efSearch."""

Kind = Literal["exact", "hnsw", "ivfpq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What index.json says. `folders` are the embeddings, `embedder` is what made them all."""

    kind: Kind
    count: int
    width: int
    files: str
    folders: tuple[str, ...]
    embedder: Mapping[str, Any]


def choose(count: int) -> Kind:
    """Every vector is compared ("exact") up to 50,000 of them; up to a million a graph is walked ("hnsw",
    4 E + 256 bytes a vector); above, lists of coded vectors are read ("ivfpq", E / 4 + 8 bytes a vector)."""
    return "exact" if count <= MAX_EXACT else "hnsw" if count <= MAX_HNSW else "ivfpq"


def build(sources: Sequence[Embeddings], out: Path, *, kind: Kind | None = None) -> Description:
    """An index over all vectors of `sources`, in order; one in `out` is replaced when the new one is whole.

    Files in `out` that are not of an index stay. Raises InputError for embeddings of different models or
    without vectors, where `out` holds something else and no index, and while another process works there.
    """
    _check_sources(sources)
    _check_folder(out)
    count, width = sum(map(len, sources)), sources[0].job.width
    description = Description(
        kind=kind or choose(count),
        count=count,
        width=width,
        files=_name(sources, kind or choose(count)),
        folders=tuple(str(source.folder) for source in sources),
        embedder=sources[0].job.embedder,
    )
    with locked(out):
        _write(description, sources, out)
        for path in list(out.iterdir()):
            ours = OURS.fullmatch(path.name)
            if ours and ours["files"] != description.files:
                path.unlink()
    return description


def _write(description: Description, sources: Sequence[Embeddings], out: Path) -> None:
    faiss = import_faiss()
    index = _empty(description, sources)
    with (
        _whole(out / f"{description.files}.parquet") as entries,
        import_pyarrow().parquet.ParquetWriter(entries, entry_schema(), compression="zstd") as writer,
    ):
        for number, source in enumerate(sources):
            for part, vectors_BE in source.parts():
                index.add(unit(vectors_BE))
                writer.write_table(_table(number, part))
    with _whole(out / f"{description.files}.faiss") as vectors:
        faiss.write_index(index, faiss.PyCallbackIOWriter(vectors.write))
    write_whole(out / INDEX, dump({"format": FORMAT, **asdict(description)}))


def describe(folder: Path) -> Description:
    """What an index is, from its index.json. Raises InputError."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder} holds no index: there is no {INDEX}; make one with `internvl index`")
    value = load_json(path, MAX_JSON_BYTES, "that is no index")
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise InputError(f"{path} is not of the format {FORMAT}")
    kinds = {"kind": str, "count": int, "width": int, "files": str, "folders": list, "embedder": dict}
    is_sound = value.keys() == kinds.keys() and all(isinstance(value[key], kinds[key]) for key in kinds)
    if not is_sound or value["kind"] not in get_args(Kind) or Path(value["files"]).name != value["files"]:
        raise InputError(f"{path} is damaged: its fields are {', '.join(kinds)}")
    return Description(**{**value, "folders": tuple(map(str, value["folders"]))})


def unit(vectors_BE: NDArray[Any]) -> NDArray[np.float32]:
    """Each vector divided by its length; one of zeros stays."""
    vectors_BE = np.ascontiguousarray(vectors_BE, dtype=np.float32)
    lengths_B1 = np.linalg.norm(vectors_BE, axis=1, keepdims=True)
    lengths_B1[lengths_B1 == 0] = 1
    divided: NDArray[np.float32] = np.divide(vectors_BE, lengths_B1)
    return divided


def num_lists(count: int) -> int:
    """Lists of an IVF-PQ index: the power of two below 4 sqrt(count) (faiss's guideline), with at least 39
    vectors for each to learn from."""
    return 1 << int(math.log2(max(1, min(4 * math.sqrt(count), count / 39))))


def _check_sources(sources: Sequence[Embeddings]) -> None:
    if not sources or not sum(map(len, sources)):
        raise InputError("there are no vectors to index: see errors.jsonl of the embeddings")
    first = sources[0]
    for source in sources[1:]:
        if source.job.width != first.job.width or dict(source.job.embedder) != dict(first.job.embedder):
            raise InputError(
                f"{source.folder} was made with {dict(source.job.embedder)}, {first.folder} with "
                f"{dict(first.job.embedder)}: vectors of different models cannot be compared"
            )


def _check_folder(out: Path) -> None:
    """It has an index, or nothing but what is left of one that was never finished, or is yet to be made."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a new folder")
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    others = [name for name in names if not OURS.fullmatch(name)]
    if others and INDEX not in others:
        raise InputError(f"{out} holds something else ({others[0]}); name a new folder")
    if others:
        try:
            describe(out)
        except InputError as reason:
            raise InputError(f"{reason}; nothing is replaced: delete it, or name a new folder") from reason


def _name(sources: Sequence[Embeddings], kind: Kind) -> str:
    """Stands for what is indexed, so that another index does not overwrite the files of the present one."""
    digest = hashlib.blake2b(kind.encode(), digest_size=8)
    for source in sources:
        digest.update(source.digest.encode())
    return digest.hexdigest()


def _empty(description: Description, sources: Sequence[Embeddings]) -> Any:
    faiss, (count, width) = import_faiss(), (description.count, description.width)
    metric = faiss.METRIC_INNER_PRODUCT
    if description.kind == "exact":
        return faiss.IndexFlatIP(width)
    if description.kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, LINKS, metric)
        index.hnsw.efConstruction = EFFORT_BUILD
        return index
    if count < MIN_IVFPQ:
        raise InputError(f"ivfpq learns from {MIN_IVFPQ} vectors or more, these are {count}: take hnsw")
    lists = num_lists(count)
    codes = next(size for size in range(max(1, width // 4), 0, -1) if width % size == 0)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, codes, 8, metric)
    index.train(_sample(sources, count, max(MIN_IVFPQ, 64 * lists)))
    return index


def _sample(sources: Sequence[Embeddings], count: int, wanted: int) -> NDArray[np.float32]:
    """Vectors at equal distances over all of them."""
    step = max(1, count // wanted)
    kept, position = [], 0
    for source in sources:
        for _, vectors_BE in source.parts():
            kept.append(unit(vectors_BE[-position % step :: step]))
            position += len(vectors_BE)
    return np.concatenate(kept)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name when the block ends well.

    It is open because pyarrow and faiss know no paths that are not UTF-8, and faiss no OSError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def entry_schema() -> Any:
    """The columns of what each vector stands for; `folder` counts in the description's."""
    pa = import_pyarrow()
    types = {"folder": pa.int32(), "row": pa.int64(), "picture": pa.int32()}
    return pa.schema({**types, "key": pa.string(), "metadata": pa.string()})


def _table(number: int, entries: Sequence[Entry]) -> Any:
    rows = [{"folder": number, **asdict(entry)} for entry in entries]
    return import_pyarrow().Table.from_pylist(rows, schema=entry_schema())
