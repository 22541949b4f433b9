"""Parquet files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from internvl.data import source_parquet
from internvl.data.source_parquet import ParquetRows
from internvl.errors import InputError

pyarrow = pytest.importorskip("pyarrow", reason="extra 'train'")
parquet = pytest.importorskip("pyarrow.parquet")


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 4) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def numbers(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"id": number, "question": f"q{number}", "answer": "狗"} for number in range(start, stop)]


def test_rows_of_several_files_and_groups_in_any_order(tmp_path: Path) -> None:
    files = [
        write_parquet(tmp_path / "a.parquet", numbers(0, 10)),
        write_parquet(tmp_path / "b.parquet", numbers(10, 13)),
    ]
    source = ParquetRows(files)
    order = [*range(12, -1, -1), *range(0, 13, 5)]
    assert [source.row(index)["id"] for index in order] == order
    assert source.row(11) == numbers(11, 12)[0]
    assert source.where(9) == f"{files[0]}, row 2 of row group 2"
    assert source.where(10) == f"{files[1]}, row 1 of row group 0"


def test_pictures_are_bytes_or_a_path(tmp_path: Path) -> None:
    picture = {"bytes": b"JPEG", "path": "a.jpg"}
    rows = [{"image": picture, "images": [picture, {"bytes": None, "path": "b.jpg"}], "plain": b"PNG"}]
    source = ParquetRows([write_parquet(tmp_path / "a.parquet", rows)])
    assert source.row(0) == {"image": b"JPEG", "images": [b"JPEG", "b.jpg"], "plain": b"PNG"}


def test_conversations_are_lists_of_objects(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert ParquetRows([write_parquet(tmp_path / "a.parquet", [row])]).row(0) == row


def test_a_date_outside_of_the_calendar_is_a_broken_row(tmp_path: Path) -> None:
    taken = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "taken": taken}), tmp_path / "a.parquet")
    source = ParquetRows([tmp_path / "a.parquet"])
    assert source.row(0)["text"] == "a"
    with pytest.raises(InputError, match=r"a\.parquet, row 2 of row group 0"):
        source.row(1)


def test_a_group_over_the_limit_is_a_broken_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ParquetRows([write_parquet(tmp_path / "a.parquet", numbers(0, 3))])
    monkeypatch.setattr(source_parquet, "MAX_GROUP_BYTES", 10)
    with pytest.raises(InputError, match=r"row 2 of row group 0.* limit is 10; .*smaller row_group_size"):
        source.row(1)


def test_damaged_data_is_a_broken_row_and_other_groups_stay(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", numbers(0, 8))
    source = ParquetRows([path])
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(InputError, match="row 1 of row group 0: not readable as parquet"):
        source.row(0)
    assert source.row(7)["id"] == 7


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello" * 100])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet: not readable as parquet"):
        ParquetRows([path])


def test_a_cut_off_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", numbers(0, 8))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not readable"):
        ParquetRows([path])
    with pytest.raises(InputError, match="no such file"):
        ParquetRows([tmp_path / "b.parquet"])


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", numbers(0, 1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'internvl\[train\]'"):
        ParquetRows([path])


def test_an_index_outside_is_refused(tmp_path: Path) -> None:
    source = ParquetRows([write_parquet(tmp_path / "a.parquet", numbers(0, 2))])
    for index in (-1, 2):
        with pytest.raises(IndexError, match="2 rows"):
            source.row(index)


def test_a_footer_that_claims_other_rows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ParquetRows([write_parquet(tmp_path / "a.parquet", numbers(0, 8))])
    monkeypatch.setattr(source, "_num_rows", lambda number, group: 5)
    with pytest.raises(InputError, match=r"row group 0: the group has 4 rows, not 5"):
        source.row(0)
    monkeypatch.undo()
    monkeypatch.setattr(source_parquet, "MAX_GROUP_ROWS", 3)
    with pytest.raises(InputError, match=r"row group 0 claims 4 rows"):
        ParquetRows([tmp_path / "a.parquet"])
