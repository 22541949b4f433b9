"""Shards and receipts read back, and files that are none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from internvl.errors import InputError
from internvl.search.folder import read_manifest
from internvl.search.job import Form, Job, plan
from internvl.search.shards import Entry, make_shard, read_shard
from internvl.search.vectors import Embeddings
from tests.search.fakes import write_embeddings, write_folder

KEYS = ("a", "two\nlines\r\u2028", "狗", '"')


def job(tmp_path: Path, form: Form) -> Job:
    folder = tmp_path / "pictures"
    if not folder.exists():
        write_embeddings(tmp_path / "out", [write_folder(folder, 4, broken={})])
    value = Embeddings(tmp_path / "out").job.as_json()
    return Job.from_json(json.loads(json.dumps({**value, "form": form})))


@pytest.mark.parametrize("form", ["parquet", "npy"])
@pytest.mark.parametrize("count", [0, 4])
def test_there_and_back(tmp_path: Path, form: Form, count: int) -> None:
    made = job(tmp_path, form)
    entries = [Entry(row=row, picture=0, key=key, metadata="{}") for row, key in enumerate(KEYS[:count])]
    vectors_BE = np.random.default_rng(0).normal(size=(count, made.width)).astype(np.float32)
    shard = make_shard(plan(made)[0], made, entries, vectors_BE, [])
    found, again_BE = read_shard(list(shard.files.values()), form, count, made.width, "here")
    assert found == entries
    np.testing.assert_array_equal(again_BE, vectors_BE)
    with pytest.raises(InputError, match="here"):
        read_shard(list(shard.files.values()), form, count + 1, made.width, "here")
    with pytest.raises(InputError, match="vectors of shape"):
        make_shard(plan(made)[0], made, entries, vectors_BE[:, :1], [])


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    fitting = io.BytesIO()
    np.save(fitting, np.zeros((1, 6), np.float32))
    pickled = io.BytesIO()
    np.save(pickled, np.array([object()]), allow_pickle=True)
    huge = fitting.getvalue().replace(b"(1, 6)", b"(99999999999, 6)")
    line = b'{"row": 0, "picture": 0, "key": "a", "metadata": "{}"}\n'
    assert len(read_shard([fitting.getvalue(), line], "npy", 1, 6, "here")[0]) == 1
    for content, lines in (
        (b"", line),
        (b"nothing", line),
        (pickled.getvalue(), line),
        (huge, line),
        (fitting.getvalue()[:-4], line),
        (fitting.getvalue(), b"{\n"),
        (fitting.getvalue(), line.replace(b'"a"', b"1")),
        (fitting.getvalue(), line.replace(b'"key"', b'"name"')),
        (fitting.getvalue(), line * 2),
        (fitting.getvalue(), b"\xff\n"),
    ):
        with pytest.raises(InputError, match="here"):
            read_shard([content, lines], "npy", 1, 6, "here")
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"row": [1]}), table)
    for content in (b"", b"PAR1", table.getvalue()):
        with pytest.raises(InputError, match="here"):
            read_shard([content], "parquet", 1, 6, "here")


def test_manifests_that_are_none(tmp_path: Path) -> None:
    out = write_embeddings(tmp_path / "out", [write_folder(tmp_path / "pictures", 4, broken={})])
    whole = read_manifest(out)
    path = out / "manifest.json"
    changes: tuple[dict[str, object], ...] = (
        {"format": "another"},
        {"job": {}},
        {"job": {**whole["job"], "batch": 0}},
        {"job": {**whole["job"], "inputs": "x"}},
        {"job": {**whole["job"], "columns": {"key": 1, "image": None, "metadata": None}}},
        {"job": {**whole["job"], "form": "zip"}},
        {"shards": [{}]},
        {"shards": [{"vectors": 1, "files": [{"name": "../../x", "sha256": ""}]}]},
    )
    for change in changes:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(InputError):
            Embeddings(out)
    path.unlink()
    with pytest.raises(InputError, match="has not finished"):
        Embeddings(out)
    with pytest.raises(InputError, match="holds no embeddings"):
        Embeddings(tmp_path / "pictures")


def test_units_cover_the_rows(tmp_path: Path) -> None:
    made = job(tmp_path, "parquet")
    for rows, size, expected in ((10, 4, [(0, 4), (4, 8), (8, 10)]), (4, 4, [(0, 4)]), (1, 9, [(0, 1)])):
        units = plan(Job.from_json({**made.as_json(), "rows": rows, "shard_rows": size}))
        assert [(unit.start, unit.stop) for unit in units] == expected
        assert [unit.name for unit in units] == sorted(unit.name for unit in units)
