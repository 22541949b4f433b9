"""Answers that were written are there again, also after a kill; never those of another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl.errors import InputError
from internvl.evaluation.answer_file import AnswerFile


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_written_as_they_come_and_complete_under_their_name(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = AnswerFile(path, "m")
    file.add("b", "Q2", "line\u2028break", ["x", "y"])
    file.add("a", "Q1", "1", ["1"])
    assert not path.exists()
    assert [row["key"] for row in rows(file.partial)] == ["b", "a"]
    assert file.finish({"a": {"exact": 1.0}, "b": {"exact": 0.0}}) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert rows(path)[0] == {
        "key": "a",
        "question": "Q1",
        "answer": "1",
        "references": ["1"],
        "made_by": "m",
        "score": {"exact": 1.0},
    }
    assert AnswerFile(path, "m").find("b", "Q2", ("x", "y")) == "line\u2028break"


def test_a_killed_run_goes_on_without_its_last_half_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = AnswerFile(path, "m")
    file.add("a", "Q1", "1", ["1"])
    file.add("b", "Q2", "é", ["2"])
    content = file.partial.read_bytes()
    file.partial.write_bytes(content[: content.index("é".encode()) + 1])
    again = AnswerFile(path, "m")
    assert again.find("a", "Q1", ["1"]) == "1"
    assert again.find("b", "Q2", ["2"]) is None
    again.add("b", "Q2", "2", ["2"])
    assert [row["key"] for row in rows(again.partial)] == ["a", "b"]


def test_another_question_under_the_same_key_is_asked(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "out.jsonl", "m")
    file.add("a", "Q1", "1", ["1"])
    assert file.find("a", "Q2", ["1"]) is None
    assert file.find("a", "Q1", ["2"]) is None


def test_answers_that_are_not_asked_for_now_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = AnswerFile(path, "m")
    for key in "abc":
        file.add(key, "Q", "1", ["1"])
    assert file.finish({"c": {}}) == 2
    assert [row["key"] for row in rows(path)] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"key": "a"}\n', "line 1: a row of answers has key, question"),
        (b"a,b\n", "line 1: no JSON object"),
        (b"\xff\n", "line 1: no JSON object"),
        (b"[" * 10_000 + b"\n", "line 1: no JSON object"),
        (
            b'{"key": "a", "question": "", "answer": "", "references": [], "made_by": "other"}\n',
            "another model or other settings",
        ),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        AnswerFile(path, "m")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("out.jsonl", content)]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        AnswerFile(tmp_path / "none" / "out.jsonl", "m")
