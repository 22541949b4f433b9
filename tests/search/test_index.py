"""The index: which structure, what it holds, and that a new one replaces the old one whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl.errors import InputError
from internvl.search.embed import embed, make_job
from internvl.search.folder import locked
from internvl.search.index import build, choose, describe, num_lists, unit
from internvl.search.inputs import Inputs
from internvl.search.query import Index
from internvl.search.vectors import Embeddings
from tests.search.fakes import FakeEmbedder, contents, write_embeddings, write_folder


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    return Embeddings(write_embeddings(tmp_path / "out", [write_folder(tmp_path / "pictures", 20)]))


@pytest.mark.parametrize(
    ("count", "kind"),
    [(1, "exact"), (50_000, "exact"), (50_001, "hnsw"), (1_000_000, "hnsw"), (1_000_001, "ivfpq")],
)
def test_the_size_decides(count: int, kind: str) -> None:
    assert choose(count) == kind


@pytest.mark.parametrize(("count", "lists"), [(10_000, 256), (1_000_000, 2048), (10_000_000, 8192), (100, 2)])
def test_lists_follow_the_size(count: int, lists: int) -> None:
    assert num_lists(count) == lists


def test_vectors_get_length_one() -> None:
    vectors = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_every_vector_finds_itself(tmp_path: Path, embeddings: Embeddings, kind: Any) -> None:
    description = build([embeddings], tmp_path / "index", kind=kind)
    assert (description.kind, description.count, description.width) == (kind, 20, 6)
    index = Index(tmp_path / "index")
    for entries, vectors_BE in embeddings.parts():
        hits = index.search(vectors_BE, 3)
        for entry, (first, *others) in zip(entries, hits, strict=True):
            assert (first.key, first.row, first.picture) == (entry.key, entry.row, entry.picture)
            assert first.score == pytest.approx(1.0, abs=1e-5)
            assert len(others) == 2
            assert others[0].score >= others[1].score


def test_several_embeddings_in_one_index(tmp_path: Path, embeddings: Embeddings) -> None:
    more = Embeddings(write_embeddings(tmp_path / "more", [write_folder(tmp_path / "others", 3)], form="npy"))
    build([embeddings, more], tmp_path / "index")
    index = Index(tmp_path / "index")
    assert len(index) == 23
    _, vectors_BE = next(more.parts())
    hits = index.search(vectors_BE[:1], 2)[0]
    assert {hit.folder for hit in hits} == {str(tmp_path / "out"), str(tmp_path / "more")}


def test_vectors_of_different_models_are_refused(tmp_path: Path, embeddings: Embeddings) -> None:
    inputs, other = Inputs([tmp_path / "pictures"]), FakeEmbedder(seed=5)
    embed(make_job(inputs, other), inputs, other, tmp_path / "other")
    with pytest.raises(InputError, match="different models"):
        build([embeddings, Embeddings(tmp_path / "other")], tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_new_index_replaces_the_old_one_whole(
    tmp_path: Path, embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    build([embeddings], tmp_path / "index")
    before = contents(tmp_path / "index")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("faiss.write_index", full)
        with pytest.raises(OSError, match="No space"):
            build([embeddings], tmp_path / "index", kind="hnsw")
    assert {name: before[name] for name in before} == {
        name: content for name, content in contents(tmp_path / "index").items() if name in before
    }
    assert Index(tmp_path / "index").description.kind == "exact"
    build([embeddings], tmp_path / "index", kind="hnsw")
    assert Index(tmp_path / "index").description.kind == "hnsw"
    assert len(contents(tmp_path / "index")) == 3


def test_what_is_no_index_is_left_alone(tmp_path: Path, embeddings: Embeddings) -> None:
    with pytest.raises(InputError, match="holds something else"):
        build([embeddings], tmp_path / "pictures")
    with pytest.raises(InputError, match="holds no index"):
        describe(tmp_path / "pictures")
    with pytest.raises(InputError, match="no vectors"):
        build([], tmp_path / "index")
    with pytest.raises(InputError, match="is a file"):
        build([embeddings], tmp_path / "pictures" / "0000.png")


HALF = f".{'0' * 16}.faiss.{'1' * 32}.partial"
"""What a build that was killed has left."""

OF_A_USER = ("data.parquet", "vectors.faiss", ".notes.partial", f"{'a' * 15}.parquet", f"{HALF}.txt")


def write_files(folder: Path, *names: str) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return {name: name.encode() for name in names}


def test_files_of_a_user_stay(tmp_path: Path, embeddings: Embeddings) -> None:
    folder = tmp_path / "index"
    build([embeddings], folder)
    old = contents(folder).keys() - {"index.json"}
    theirs = write_files(folder, *OF_A_USER)
    write_files(folder, HALF, f".index.json.{'2' * 32}.partial", f"{'3' * 16}.parquet")
    build([embeddings], folder, kind="hnsw")
    found = contents(folder)
    assert {name: found.pop(name) for name in theirs} == theirs
    assert len(found) == 3
    assert not found.keys() & old


@pytest.mark.parametrize("name", OF_A_USER)
def test_a_folder_of_files_like_ours_is_refused(tmp_path: Path, embeddings: Embeddings, name: str) -> None:
    before = write_files(tmp_path / "mine", name, HALF)
    with pytest.raises(InputError, match="holds something else"):
        build([embeddings], tmp_path / "mine")
    assert contents(tmp_path / "mine") == before


def test_what_a_killed_build_has_left_is_replaced(tmp_path: Path, embeddings: Embeddings) -> None:
    write_files(tmp_path / "index", HALF, f"{'3' * 16}.parquet")
    build([embeddings], tmp_path / "index")
    assert len(contents(tmp_path / "index")) == 3
    assert len(Index(tmp_path / "index")) == 20


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"format": "internvl-index-1"}'])
def test_an_index_json_of_another_kind_is_refused(tmp_path: Path, embeddings: Embeddings, text: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text(text)
    with pytest.raises(InputError, match="nothing is replaced: delete it, or name a new folder"):
        build([embeddings], tmp_path / "site")
    assert contents(tmp_path / "site") == {"index.json": text.encode()}


def test_a_folder_whose_name_is_no_unicode(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        pictures = write_folder(folder / "pictures", 5)
    except (OSError, UnicodeError):
        pytest.skip("the file system takes UTF-8 alone")
    embeddings = Embeddings(write_embeddings(folder / "out", [pictures]))
    for kind in ("exact", "hnsw"):
        build([embeddings], folder / "index", kind=kind)  # type: ignore[arg-type]
        index = Index(folder / "index")
        entries, vectors_BE = next(embeddings.parts())
        hits = index.search(vectors_BE, 1)
        assert [hit.key for (hit,) in hits] == [entry.key for entry in entries]
        assert hits[0][0].folder == str(folder / "out")


def test_one_build_at_a_time(tmp_path: Path, embeddings: Embeddings) -> None:
    with locked(tmp_path / "index"), pytest.raises(InputError, match="another process is writing"):
        build([embeddings], tmp_path / "index")
    assert contents(tmp_path / "index") == {}
    build([embeddings], tmp_path / "index")


def test_ivfpq_needs_many_vectors(tmp_path: Path, embeddings: Embeddings) -> None:
    with pytest.raises(InputError, match="10000 vectors or more, these are 20"):
        build([embeddings], tmp_path / "index", kind="ivfpq")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"files": "../x"},
        {"count": 19},
        {"width": 7},
        {"folders": []},
        {"format": "another"},
    ],
)
def test_a_damaged_description_is_refused(
    tmp_path: Path, embeddings: Embeddings, change: dict[str, object]
) -> None:
    build([embeddings], tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"damaged|not of the format"):
        Index(tmp_path / "index")


def test_damaged_files_are_refused(tmp_path: Path, embeddings: Embeddings) -> None:
    folder = tmp_path / "index"
    for suffix, told in ((".parquet", "not readable"), (".faiss", "not readable by faiss")):
        build([embeddings], folder)
        (path,) = folder.glob(f"*{suffix}")
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(InputError, match=told):
            Index(folder)
    next(folder.glob("*.faiss")).unlink()
    with pytest.raises(InputError, match="no such file"):
        Index(folder)


def test_a_shard_that_changed_is_refused(tmp_path: Path, embeddings: Embeddings) -> None:
    path = embeddings.folder / "shards" / "000001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="not what was written"):
        build([embeddings], tmp_path / "index")
