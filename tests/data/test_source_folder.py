"""Folders of pictures with captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl.data.source_folder import Sidecars
from internvl.data.sources import Source, open_source
from internvl.errors import InputError
from tests.data.rows import write_jsonl


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not opened")
    return folder


def every_row(source: Source) -> list[object]:
    return [source.row(index) for index in range(len(source))]


def test_metadata_lines(tmp_path: Path) -> None:
    rows = [{"file_name": "a.jpg", "text": "a dog"}, {"image": "b.jpg", "question": "?", "answer": "!"}]
    write_jsonl(pictures(tmp_path, "a.jpg", "b.jpg") / "metadata.jsonl", rows)
    source = open_source(tmp_path)
    assert every_row(source) == [{"image": "a.jpg", "caption": "a dog"}, rows[1]]
    assert source.where(1).endswith("metadata.jsonl, line 2")


def test_metadata_table(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file_name,text\na.jpg,"a dog, asleep"\n')
    assert every_row(open_source(tmp_path)) == [{"image": "a.jpg", "caption": "a dog, asleep"}]


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\na.jpg,"one, two"\nb.jpg,three\n',
        "a.jpg\tone, two\nb.jpg\tthree",
        "a.jpg#0\tone, two\nb.jpg#4\tthree\n",
        "\ufeffa.jpg,one, two\n\nb.jpg , three\n",
    ],
)
def test_captions_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "captions.txt").write_text(text, encoding="utf-8")
    expected = [{"image": "a.jpg", "caption": "one, two"}, {"image": "b.jpg", "caption": "three"}]
    assert every_row(open_source(tmp_path)) == expected


def test_a_line_without_caption_is_a_broken_row(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_bytes(b"a.jpg\tone\nb.jpg\nc.jpg\t\n\xff\t\xff\n")
    source = open_source(tmp_path)
    for index, message in ((1, "expected a picture's name"), (2, "expected"), (3, "utf-8")):
        with pytest.raises(InputError, match=f"captions.txt, line {index + 1}: .*{message}"):
            source.row(index)


def test_text_beside_each_picture(tmp_path: Path) -> None:
    pictures(tmp_path, "b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", "notes.md")
    for name, text in (("a.txt", "\ufeffone\n"), ("b.txt", "two"), ("sub/c.txt", "drei")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    source = open_source(tmp_path)
    assert every_row(source) == [
        {"image": "a.PNG", "caption": "one"},
        {"image": "b.jpg", "caption": "two"},
        {"image": "sub/c.webp", "caption": "drei"},
    ]
    assert source.where(2) == str(tmp_path / "sub" / "c.webp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no caption beside it"),
        (b" \n", "is empty"),
        (b"\xff", "not UTF-8"),
        (b"x" * 1_100_000, "over"),
    ],
)
def test_a_picture_without_a_caption_is_a_broken_row(
    tmp_path: Path, text: bytes | None, message: str
) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("one")
    if text is not None:
        (tmp_path / "b.txt").write_bytes(text)
    source = open_source(tmp_path)
    assert source.row(0) == {"image": "a.jpg", "caption": "one"}
    with pytest.raises(InputError, match=message):
        source.row(1)


def test_a_folder_without_any_text_says_what_is_missing(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"2 pictures and no text; add a .txt beside each"):
        open_source(tmp_path)


def test_two_files_of_captions_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a.jpg\tone\n")
    write_jsonl(tmp_path / "metadata.jsonl", [])
    with pytest.raises(InputError, match=r"metadata.jsonl and captions.txt; name the one"):
        open_source(tmp_path)


def test_an_index_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="1 pictures"):
        Sidecars(pictures(tmp_path, "a.jpg")).row(1)
