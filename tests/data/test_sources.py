"""Which reader opens what, and that all of them may be read from anywhere."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from internvl.data.sources import Source, open_source
from internvl.errors import InputError
from tests.data.rows import write_jsonl

COUNT = 60


def write_table(folder: Path) -> Path:
    path = folder / "a.csv"
    path.write_text("question,answer\n" + "".join(f'"q\n{number}",{number}\n' for number in range(COUNT)))
    return path


def write_lines(folder: Path) -> Path:
    return write_jsonl(folder / "a.jsonl", ({"id": number} for number in range(COUNT)))


def write_shards(folder: Path) -> Path:
    for shard in range(3):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for number in range(COUNT // 3):
                content = f"{shard} {number}".encode()
                member = tarfile.TarInfo(f"{number:04}.txt")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


def write_sidecars(folder: Path) -> Path:
    for number in range(COUNT):
        (folder / f"{number:03}.jpg").write_bytes(b"")
        (folder / f"{number:03}.txt").write_text(f"caption {number}")
    return folder


def write_parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="extra 'train'")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        rows = [{"id": part * COUNT + number} for number in range(COUNT)]
        name = folder / f"train-{part:05}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), name, row_group_size=7)
    return folder


KINDS: tuple[Callable[[Path], Path], ...] = (
    write_table,
    write_lines,
    write_shards,
    write_sidecars,
    write_parquet,
)


def every_row(source: Source) -> list[Any]:
    return [source.row(index) for index in range(len(source))]


@pytest.mark.parametrize("write", KINDS)
def test_threads_read_what_one_reads(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = open_source(write(tmp_path))
    expected = every_row(source)
    assert len({str(row) for row in expected}) == len(expected) >= COUNT
    order = [index * 37 % len(source) for index in range(4 * len(source))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.row, order)) == [expected[index] for index in order]
    assert len({source.where(index) for index in range(len(source))}) == len(source)


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forks_read_what_one_reads(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Parent and child read in turn; neither moves the other's place in the file."""
    source = open_source(write(tmp_path))
    expected = every_row(source)
    child = os.fork()
    if not child:
        os._exit(0 if every_row(source)[::-1] == expected[::-1] else 1)
    assert every_row(source) == expected
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("write", KINDS)
def test_damage_is_an_input_error(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Bytes changed, cut out or put in: a file is refused, a row is broken, or it reads as something else."""
    path = write(tmp_path)
    victim = path if path.is_file() else next(file for file in sorted(path.iterdir()) if file.stat().st_size)
    whole, draw, found = victim.read_bytes(), random.Random(0), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            start = draw.randrange(len(content) + 1)
            content[start : start + draw.choice((0, 1, 100, 512))] = draw.choice(
                (b"", b'"', b"\n", b"\0", b"\xff")
            )
        victim.write_bytes(content)
        found += count_failures(path)
    assert found  # damage is seen at all


def count_failures(path: Path) -> int:
    """Rows that are broken, or 1 for a file that is refused; any error but InputError passes through."""
    try:
        source = open_source(path)
    except InputError:
        return 1
    failures = 0
    for index in range(len(source)):
        assert source.where(index)
        try:
            source.row(index)
        except InputError:
            failures += 1
    return failures


def test_shards_are_joined_in_order(tmp_path: Path) -> None:
    for source in (open_source(write_shards(tmp_path)), open_source(tmp_path / "train-*.tar")):
        captions = [row["caption"] for row in every_row(source)]
        assert captions == [f"{shard} {number}" for shard in range(3) for number in range(COUNT // 3)]
        assert "train-002.tar, record 20" in source.where(COUNT - 1)
        for index in (-1, COUNT):
            with pytest.raises(IndexError, match=f"{COUNT} rows"):
                source.row(index)


def test_a_folder_of_different_data_is_ambiguous(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"id": 1}])
    assert len(open_source(tmp_path)) == 1
    write_jsonl(tmp_path / "val.jsonl", [{"id": 2}])
    with pytest.raises(InputError, match=r"different data; name one of train.jsonl, val.jsonl"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "*.jsonl")) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.tar.gz", "unpack it"),
        ("a.pkl", "pickles are not read"),
        ("a.xlsx", "save the table as CSV"),
        ("a.docx", "known are .jsonl"),
        ("missing.jsonl", "no such file"),
        ("missing folder", "no such file or folder"),
        ("none-*.tar", "no file is called .*none-"),
        (f"{'x' * 256}.jsonl", "cannot read .*File name too long"),
        (f"{'x' * 256}-*.tar", "cannot read .*File name too long"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, name: str, message: str) -> None:
    if name.startswith("a."):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "question,answer\n")],
)
def test_no_rows_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="holds no rows"):
        open_source(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither pictures nor rows"):
        open_source(tmp_path)
