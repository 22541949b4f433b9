"""JSONL files and small arrays of rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl.data import source_json
from internvl.data.source_json import JsonArray, JsonLines, parse_json
from internvl.errors import InputError
from tests.data.rows import write_jsonl


def test_lines_are_rows(tmp_path: Path) -> None:
    rows = [{"id": number, "text": "é狗\u2028" * number} for number in range(20)]
    source = JsonLines(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [source.row(index) for index in range(len(source))] == rows
    assert source.name == "a.jsonl"


def test_byte_order_mark_blank_lines_and_windows_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 0}\r\n\r\n  \n{"id": 1}\r\n{"id": 2}')
    source = JsonLines(path)
    assert [source.row(index) for index in range(len(source))] == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert [source.where(index)[-6:] for index in range(3)] == ["line 1", "line 4", "line 5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b'{"id": 1', "not JSON"),
        (b"[1]", "a row is an object, this is a list"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"image": "a", "image": "b"}', "'image' comes twice"),
    ],
)
def test_a_broken_line_is_named_and_the_others_stay(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": 0}\n' + line + b'\n{"id": 2}\n')
    source = JsonLines(path)
    with pytest.raises(InputError, match=f"line 2.*{message}"):
        source.row(1)
    assert source.row(2) == {"id": 2}


def test_an_array_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": 0}, 7]))
    source = JsonArray(path)
    assert source.row(0) == {"id": 0}
    with pytest.raises(InputError, match="item 2: a row is an object"):
        source.row(1)


def test_a_large_array_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_json, "MAX_ARRAY_BYTES", 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": 0}, {"id": 1}]))
    with pytest.raises(InputError, match="over 10 bytes; write it as JSONL"):
        JsonArray(path)


@pytest.mark.parametrize(("content", "message"), [("7", "holds a int"), ("[", "a.json: not JSON")])
def test_what_is_no_array_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        JsonArray(path)


@pytest.mark.timeout(20)
def test_a_doubled_key_among_very_many_is_found_at_once() -> None:
    keys = ",".join(f'"{number}": 0' for number in range(200_000))
    with pytest.raises(InputError, match="'199999' comes twice"):
        parse_json(f'{{{keys}, "199999": 1}}'.encode())
