"""Caption files on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl.data.caption_set import read_captions
from internvl.data.records import tidy
from internvl.errors import InputError

ROW = {"image": "images/a.jpg", "en": ["a dog runs .", "Two dogs"], "zh": ["狗"]}


def test_reads_lines_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n")
    records = read_captions(path, limit=1)
    assert [record.image for record in records] == [tmp_path / "images" / "a.jpg"]
    assert records[0].captions == ("A dog runs.", "Two dogs.")
    assert len(read_captions(path)) == 2


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"image": 1, "en": ["a"]}', '{"image": "a", "en": []}', '{"image": "a", "en": [" "]}'],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        read_captions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no caption file"):
        read_captions(tmp_path / "train.jsonl")


@pytest.mark.parametrize(
    ("caption", "written"),
    [
        ("a dog 's  bone .", "A dog's bone."),
        ("Two men , one hat !", "Two men, one hat."),
        (".", "."),
        ("Done.", "Done."),
    ],
)
def test_tidy(caption: str, written: str) -> None:
    assert tidy(caption) == written
