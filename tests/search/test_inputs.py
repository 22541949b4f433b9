"""Inputs of every kind as rows in order, with keys and metadata; and names that are chosen to hurt."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from internvl.errors import InputError
from internvl.search.columns import Columns, readable, visible
from internvl.search.inputs import Inputs
from internvl.search.vectors import Embeddings
from tests.search.fakes import picture, write_embeddings, write_folder, write_tar

HOSTILE = (
    b"<script>alert(1)</script>".replace(b"/", b"_") + b".png",
    b"line\nbreak\r\x1b[31m.png",
    b"not utf8 \xff\xfe.png",
    "right\u202eto left.png".encode(),
    "line\u2028sep\x85.png".encode(),
    b"-rf --out.png",
    b"quote\"'&amp;.png",
    b"* glob ? [a].png",
    ("x" * 250).encode() + b".png",
    b"{braces} %s $HOME `id`.png",
    "狗 🐕.png".encode(),
)


def keys(inputs: Inputs) -> list[str]:
    return [item.key for row in range(len(inputs)) for item in inputs.items(row)]


def test_a_folder_by_name_with_its_subfolders(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 5, broken={})
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(picture(0))
    (folder / "notes.txt").write_text("no picture")
    inputs = Inputs([folder])
    assert keys(inputs) == ["0000.png", "0003.png", "sub/0001.png", "sub/0002.png", "sub/0004.png"]
    assert inputs.items(2)[0].source == folder / "sub/0001.png"
    assert inputs.items(2)[0].metadata == "{}"


def test_captions_do_not_double_pictures(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 1, broken={})
    (folder / "captions.txt").write_text("image,caption\n0000.png,a dog\n0000.png,a cat\n")
    assert keys(Inputs([folder])) == ["0000.png"]


def test_metadata_of_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 1, broken={})
    row = {"file_name": "0000.png", "place": "Köln", "year": 2020, "tags": ["a", "b"], "nothing": None}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    (item,) = Inputs([folder]).items(0)
    assert (item.key, item.source) == ("0000.png", folder / "0000.png")
    assert json.loads(item.metadata) == {name: row[name] for name in ("place", "year", "tags", "nothing")}
    (folder / "metadata.csv").write_text("file_name\n0000.png\n")
    with pytest.raises(InputError, match="name the one to read"):
        Inputs([folder])


def test_lists_of_paths(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 2, broken={})
    path = tmp_path / "list.txt"
    path.write_text(f"\ufeffpictures/0000.png\r\n\n{folder}/sub/0001.png\n", encoding="utf-8")
    inputs = Inputs([path])
    assert keys(inputs) == ["pictures/0000.png", f"{folder}/sub/0001.png"]
    assert [inputs.items(row)[0].source for row in range(2)] == [folder / "0000.png", folder / "sub/0001.png"]
    assert inputs.where(1) == f"{path}, line 3"
    path.write_text("\n")
    with pytest.raises(InputError, match="names no pictures"):
        Inputs([path])


def test_pictures_named_one_by_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 3, broken={})
    names = ["sub/0002.png", "0000.png"]
    assert keys(Inputs([folder / name for name in names])) == names
    with pytest.raises(InputError, match="no such file"):
        Inputs([folder / "none.png"])


def test_tar_shards(tmp_path: Path) -> None:
    for number in range(2):
        files = {f"{number}.jpg": picture(number), f"{number}.json": b'{"year": 2020}', f"{number}.txt": b"a"}
        write_tar(tmp_path / f"shard-{number}.tar", files)
    inputs = Inputs([tmp_path / "shard-*.tar"])
    assert keys(inputs) == ["0", "1"]
    item = inputs.items(1)[0]
    assert item.source == picture(1)
    assert json.loads(item.metadata) == {"id": "1", "year": 2020, "caption": "a"}
    assert keys(Inputs([tmp_path])) == ["0", "1"]


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    rows = [
        {"img": {"bytes": picture(0), "path": None}, "label": 3, "url": "a", "score": float("nan")},
        {"img": {"bytes": picture(1), "path": None}, "label": 4, "url": "b", "score": 0.5},
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    inputs = Inputs([tmp_path / "a.parquet"], Columns(key="url", image="img", metadata=("label", "score")))
    assert keys(inputs) == ["a", "b"]
    assert inputs.items(1)[0].source == picture(1)
    assert [json.loads(inputs.items(row)[0].metadata) for row in range(2)] == [
        {"label": 3, "score": None},
        {"label": 4, "score": 0.5},
    ]
    unnamed = Inputs([tmp_path / "a.parquet"], Columns(image="img"))
    assert keys(unnamed) == ["000000000", "000000001"]
    for columns in (Columns(key="none"), Columns(image="none"), Columns(metadata=("label", "none"))):
        with pytest.raises(
            InputError, match="no input has a column 'none'; there are img, label, url, score"
        ):
            Inputs([tmp_path / "a.parquet"], columns)


def test_several_pictures_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"key": "row", "images": ["a.png", "b.png"]}))
    items = Inputs([tmp_path / "a.jsonl"]).items(0)
    assert [(item.key, item.picture, item.source) for item in items] == [
        ("row#0", 0, tmp_path / "a.png"),
        ("row#1", 1, tmp_path / "b.png"),
    ]


def test_several_inputs_have_their_names_before_the_keys(tmp_path: Path) -> None:
    a, b = (write_folder(tmp_path / name / "photos", 1, broken={}) for name in "ab")
    assert keys(Inputs([a, b, b / "0000.png"])) == ["photos/0000.png", "photos-2/0000.png", "files/0000.png"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ('{"text": "none"}', "0 pictures"),
        (json.dumps({"images": ["a.png"] * 1001}), "1001 pictures"),
        ('{"image": {"nothing": 1}}', "bytes or a mapping"),
        (json.dumps({"image": "x" * 5000}), "a key of 5000 characters"),
        (json.dumps({"image": "a.png", "text": "x" * (1 << 20)}), "metadata"),
        ('{"image": "a.png", "deep": [NaN]}', "metadata"),
        (f'{{"image": "a.png", "deep": {"[" * 900}{"]" * 900}}}', None),
        ('{"image": "s3://bucket/a.png"}', "not on this machine"),
    ],
)
def test_broken_rows(tmp_path: Path, line: str, told: str | None) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    inputs = Inputs([tmp_path / "a.jsonl"])
    if told is None:
        assert len(inputs.items(0)) == 1
        return
    with pytest.raises(InputError, match=told):
        inputs.items(0)
    assert inputs.fallback_key(0) == "a.jsonl:1"


def test_inputs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        Inputs([])
    for name in ("none", "none.tar", "none.txt"):
        with pytest.raises(InputError, match="no such file"):
            Inputs([tmp_path / name])
    with pytest.raises(InputError, match="neither pictures nor rows"):
        Inputs([tmp_path])
    folder = write_folder(tmp_path / "both", 1, broken={})
    write_tar(folder / "a.tar", {"a.png": picture(0)})
    with pytest.raises(InputError, match="1 pictures and 1 shards"):
        Inputs([folder])


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", 2, broken={})
    before = Inputs([folder]).fingerprint
    assert Inputs([folder]).fingerprint == before
    assert Inputs([f"{folder}/sub/.."]).fingerprint == before
    (folder / "0000.png").rename(folder / "0005.png")
    renamed = Inputs([folder]).fingerprint
    (folder / "0005.png").write_bytes(picture(9, (13, 9)))
    assert len({before, renamed, Inputs([folder]).fingerprint}) == 3


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_hostile_names(tmp_path: Path, form: str) -> None:
    folder = os.fsencode(tmp_path / "pictures")
    os.mkdir(folder)  # noqa: PTH102  # names that are bytes
    for number, name in enumerate(HOSTILE):
        with open(folder + b"/" + name, "xb") as file:  # noqa: PTH123
            file.write(picture(number))
    embeddings = Embeddings(write_embeddings(tmp_path / "out", [tmp_path / "pictures"], form=form))
    entries = [entry for part, _ in embeddings.parts() for entry in part]
    expected = sorted(map(os.fsdecode, HOSTILE))
    assert [one.key for one in entries] == [readable(name) for name in expected]
    for one, path in zip(entries, (tmp_path / "pictures" / name for name in expected), strict=True):
        assert embeddings.picture(one.row, one.picture, one.key) == path
        assert not set("\n\r\x1b\u202e\u2028\x85") & set(visible(one.key))


def test_what_is_shown_is_what_is_there() -> None:
    assert visible("a\x1b[0m\u202eb\ud800") == "a\\u001b[0m\\u202eb\\ud800"
    assert visible("狗 é 🐕 می‌خواهم") == "狗 é 🐕 می‌خواهم"


def test_metadata_that_is_no_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "text": "half \\ud83d"}')
    (item,) = Inputs([tmp_path / "a.jsonl"]).items(0)
    assert json.loads(item.metadata) == {"text": "half \\ud83d"}
    assert io.BytesIO(item.metadata.encode()).read()
