"""Meta files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl.data.meta import open_data
from internvl.errors import InputError
from tests.data.rows import numbered, write_jsonl


def write_meta(folder: Path, meta: object) -> Path:
    path = folder / "meta.json"
    path.write_text(json.dumps(meta), encoding="utf-8")
    return path


def test_a_published_meta_file(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "a.jsonl", ({"id": number} for number in range(10)))
    entry = {"root": "pictures/", "annotation": "rows/a.jsonl", "data_augment": True, "length": 10}
    other = {"root": "/elsewhere", "annotation": str(tmp_path / "rows" / "a.jsonl"), "repeat_time": 3}
    first, second = open_data(
        write_meta(tmp_path, {"a": {**entry, "repeat_time": 0.5, "max_dynamic_patch": 6}, "b": other})
    )
    assert (first.name, first.size, first.per_epoch, first.augment, first.max_tiles) == ("a", 5, 5, True, 6)
    assert first.root == tmp_path / "pictures"
    assert (second.name, second.size, second.per_epoch, second.augment, second.max_tiles) == (
        "b",
        10,
        30,
        False,
        None,
    )
    assert second.root == Path("/elsewhere")
    assert second.source.row(9) == {"id": 9}


def test_paths_do_not_start_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"id": "right"}])
    write_jsonl(tmp_path / "a.jsonl", [{"id": "wrong"}])
    monkeypatch.chdir(tmp_path)
    write_meta(tmp_path / "data", {"a": {"annotation": "a.jsonl"}})
    (dataset,) = open_data("data/meta.json")
    assert dataset.source.row(0) == {"id": "right"}
    assert dataset.root == Path("data")


@pytest.mark.parametrize(
    ("repeat", "size"), [(0.29, 28), (0.015, 1), (0.5, 50), (0.999, 99), (1, 100), (2, 100)]
)
def test_a_share_is_rounded_down_as_in_the_released_code(tmp_path: Path, repeat: float, size: int) -> None:
    """`int(length * repeat_time)`: 100 x 0.29 is 28.999... in floating point."""
    assert numbered(tmp_path, "a", 100, repeat=repeat).size == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeat_time": 1.5}, "a: repeat_time above 1 must be a whole number, got 1.5"),
        ({"repeat_time": 0}, "a: repeat_time must be above 0"),
        ({"repeat_time": -1}, "above 0"),
        ({"repeat_time": float("nan")}, "above 0"),
        ({"repeat_time": 10**400}, "'repeat_time' has 401 digits, at most 308 are read"),
        ({"repeat_time": 1e300}, "repeat_time 1e.300 of 10 rows is more than 1099511627776 records an epoch"),
        ({"repeat_time": True}, "'repeat_time' must be a number, got True"),
        ({"repeat_time": 0.01}, "repeat_time 0.01 of 10 rows leaves none"),
        ({"repeat_tme": 2}, "unknown field 'repeat_tme'; known are root"),
        ({"max_dynamic_patch": 0}, "counts from 1, got 0"),
        ({"max_dynamic_patch": 2.5}, "whole number"),
        ({"data_augment": "yes"}, "must be true or false"),
        ({"weight": 0}, "a weight must be above 0"),
        ({"weight": 1e308}, r"a weight must be above 0 and at most 1e\+100"),
        ({"weight": float("nan")}, "a weight must be above 0"),
        ({"annotation": "b.jsonl"}, "data set 'a': no such file.*start from the folder of the meta file"),
        ({"annotation": 3}, "'annotation' must be a path, got 3"),
        ({"annotation": "s3://bucket/a.jsonl"}, "not on this machine"),
        ({"root": "s3://bucket/"}, "not on this machine"),
        ({"root": "a\0b"}, "must be a path"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ({"id": number} for number in range(10)))
    meta = write_meta(tmp_path, {"a": {"root": "", "annotation": "a.jsonl", **change}})
    with pytest.raises(InputError, match=message):
        open_data(meta)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "names no data sets"),
        ("{", "meta.json: not JSON"),
        ('{"a": {"annotation": "a.jsonl"}, "a": {"annotation": "b.jsonl"}}', "'a' comes twice"),
        ('{"a": "a.jsonl"}', "expected an object with 'annotation', got str"),
        ('{"a": {"root": ""}}', "'annotation' must be a path, got None"),
        ("7", "rows are an array of objects"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "meta.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        open_data(path)


def test_one_file_or_folder_is_one_data_set(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])
    (dataset,) = open_data(path)
    assert (dataset.name, dataset.root, dataset.size, dataset.repeat) == ("rows", tmp_path, 1, 1.0)
    (folder,) = open_data(tmp_path)
    assert (folder.name, folder.root, folder.size) == (tmp_path.name, tmp_path, 1)
    array = tmp_path / "array.json"
    array.write_text(' [{"id": 1}]')
    assert open_data(array)[0].source.row(0) == {"id": 1}


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    meta = write_meta(tmp_path, {"a": {"annotation": f"{'x' * 256}.jsonl"}})
    with pytest.raises(InputError, match=r"data set 'a': cannot read .*too long.*; relative paths"):
        open_data(meta)
    with pytest.raises(InputError, match=r"cannot read .*too long"):
        open_data(tmp_path / ("x" * 256))


def test_a_missing_meta_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*meta.json"):
        open_data(tmp_path / "meta.json")
