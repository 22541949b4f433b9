"""Search: the nearest of all vectors or of those a filter lets through, against a plain sort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from internvl.errors import InputError
from internvl.search.index import build, unit
from internvl.search.query import Filter, Index
from internvl.search.shards import Entry
from internvl.search.vectors import Embeddings
from tests.search.fakes import write_embeddings, write_folder

COUNT, WIDTH = 12_000, 16


def entry(row: int) -> Entry:
    metadata = {"year": 2000 + row % 10, "tags": ["dog", f"t{row % 3}"], "city": None if row % 2 else "Köln"}
    key = f"{'a' if row % 4 else 'b'}/{row:05}.jpg"
    return Entry(row=row, picture=0, key=key, metadata=json.dumps(metadata, ensure_ascii=False))


class FakeEmbeddings:
    """Vectors around 300 centres, in parts of 5,000."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        centres = random.normal(size=(300, WIDTH))
        self.vectors_BE = (
            centres[random.integers(0, 300, COUNT)] + random.normal(size=(COUNT, WIDTH)) / 2
        ).astype(np.float32)
        self.folder, self.digest = Path("none"), "digest"
        self.job = type("Job", (), {"width": WIDTH, "embedder": {"model": "fake"}})

    def __len__(self) -> int:
        return COUNT

    def parts(self) -> Any:
        for start in range(0, COUNT, 5000):
            vectors_BE = self.vectors_BE[start : start + 5000]
            yield [entry(start + row) for row in range(len(vectors_BE))], vectors_BE


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return FakeEmbeddings().vectors_BE


@pytest.fixture(scope="module", params=["exact", "hnsw", "ivfpq"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index") / request.param
    source: Any = FakeEmbeddings()
    build([source], folder, kind=request.param)
    return Index(folder)


def nearest(vectors: NDArray[np.float32], query: NDArray[np.float32], rows: Any, k: int) -> list[int]:
    scores = unit(vectors[rows]) @ unit(query[None])[0]
    return [int(rows[place]) for place in np.argsort(-scores, kind="stable")[:k]]


def recall(index: Index, vectors: NDArray[np.float32], rows: Any, only: Filter | None) -> float:
    """Of the 10 nearest, on average over 20 queries."""
    queries = vectors[:20] + 0.1
    found = index.search(queries, 10, only=only)
    shares = [
        len({hit.row for hit in hits} & set(nearest(vectors, query, rows, 10))) / 10
        for hits, query in zip(found, queries, strict=True)
    ]
    return float(np.mean(shares))


LEAST = {"exact": 1.0, "hnsw": 0.97, "ivfpq": 0.55}


def test_recall(index: Index, vectors: NDArray[np.float32]) -> None:
    assert recall(index, vectors, np.arange(COUNT), None) >= LEAST[index.description.kind]


@pytest.mark.parametrize(
    ("only", "passes"),
    [
        (Filter(key="b/*"), lambda row: row % 4 == 0),
        (Filter(key="?/0001[0-9].jpg"), lambda row: 10 <= row < 20),
        (Filter(where={"year": "2003"}), lambda row: row % 10 == 3),
        (Filter(where={"tags": "t1"}), lambda row: row % 3 == 1),
        (Filter(where={"city": "Köln"}), lambda row: row % 2 == 0),
        (Filter(where={"city": "null", "year": "2005"}), lambda row: row % 10 == 5),
        (Filter(key="b/*", where={"tags": "t0", "city": "Köln"}), lambda row: row % 12 == 0),
    ],
)
def test_filters(index: Index, vectors: NDArray[np.float32], only: Filter, passes: Any) -> None:
    rows = np.array([row for row in range(COUNT) if passes(row)])
    hits = index.search(vectors[:1], 50, only=only)[0]
    assert len(hits) == min(50, len(rows))
    assert all(passes(hit.row) for hit in hits)
    least = {"exact": 1.0, "hnsw": 1.0, "ivfpq": 0.55}
    assert recall(index, vectors, rows, only) >= least[index.description.kind]


def test_what_nothing_passes(index: Index, vectors: NDArray[np.float32]) -> None:
    for only in (Filter(key="none*"), Filter(where={"year": "1900"}), Filter(where={"nothing": "1"})):
        assert index.search(vectors[:2], 5, only=only) == [[], []]


def test_a_hit_carries_its_entry(index: Index, vectors: NDArray[np.float32]) -> None:
    hit = index.search(vectors[7:8], 1)[0][0]
    assert (hit.row, hit.key, hit.metadata["year"], hit.folder) == (7, "a/00007.jpg", 2007, "none")


def test_more_results_than_vectors_asked_for(index: Index, vectors: NDArray[np.float32]) -> None:
    assert len(index.search(vectors[:1], 10_000)[0]) > 300
    for k in (0, 10_001):
        with pytest.raises(InputError, match="from 1 to 10000"):
            index.search(vectors[:1], k)
    with pytest.raises(InputError, match="16 wide"):
        index.search(vectors[:1, :3], 1)


def test_the_picture_behind_a_hit(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", 5)
    embeddings = Embeddings(write_embeddings(tmp_path / "out", [pictures]))
    (entries, _), *_ = embeddings.parts()
    one = entries[0]
    assert embeddings.picture(one.row, one.picture, one.key) == pictures / one.key
    for place in ((one.row + 1, 0), (one.row, 3), (1000, 0)):
        assert embeddings.picture(*place, one.key) == pictures / one.key
    for key in ("none.png", "../out/job.json", "/etc/hosts"):
        with pytest.raises(InputError, match="changed since"):
            embeddings.picture(one.row, 0, key)
