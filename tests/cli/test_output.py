"""Numbers for people, and tables that are whole in a pipe."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from internvl.cli import output


@pytest.mark.parametrize(
    ("num_bytes", "told"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2_000_000, "2.0 MB"),
        (3.21e9, "3.2 GB"),
        (4e15, "4000.0 TB"),
    ],
)
def test_sizes(num_bytes: float, told: str) -> None:
    assert output.size(num_bytes) == told


def test_tables_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a word " * 30
    output.write_pairs("title", [("name", long)])
    output.write_table("numbers", ("what", "how many"), [("one", 1), ("a hundred", 100)])
    told = capsys.readouterr().out
    assert long.strip() in told
    assert "one               1" in told.splitlines()


def test_remarks_and_bars_stay_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("a remark")
    with output.status("waiting"), output.progress("bytes", is_bytes=True) as advance:
        advance("a", 1, 2)
        advance("a", 2, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "a remark\n"


def test_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_json({"text": "这", "number": 1})
    assert capsys.readouterr().out == '{\n  "text": "这",\n  "number": 1\n}\n'


STRANGE = f"{os.fsdecode(bytes([255]))}.png \ud800 é这😀"
"""A file name that is no Unicode, half of a surrogate pair, and letters that not every encoding has."""


def test_what_is_no_unicode_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.write(f"{STRANGE}\n")
    assert capsys.readouterr().out == "\\udcff.png \\ud800 é这😀\n"
    output.write_table("title", ("name", "count"), [(STRANGE, 1)])
    assert "\\udcff.png \\ud800 é这😀" in capsys.readouterr().out
    output.write_json({STRANGE: STRANGE})
    told = capsys.readouterr().out
    assert "é这😀" in told
    assert json.loads(told) == {STRANGE: STRANGE}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "gbk", "shift_jis", "utf-16"])
def test_json_is_valid_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    output.write_json({STRANGE: STRANGE})
    assert json.loads(raw.getvalue().decode(encoding)) == {STRANGE: STRANGE}
