"""Tar shards in the WebDataset layout."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from internvl.data.offsets import MAX_RECORD_BYTES
from internvl.data.source_tar import TarRows
from internvl.errors import InputError

RECORDS = {
    "dir/a.jpg": b"JPEG",
    "dir/a.txt": b"ein Hund\n",
    "b.json": json.dumps({"conversations": [], "image": "x.png", "caption": "kept"}).encode(),
    "b.png": b"PNG",
    "b.txt": b"left",
    "c.0.jpg": b"one",
    "c.1.avif": b"two",
    "c.cls": b"7",
    "c.en.txt": b"dog",
    "c.zh.txt": "狗".encode(),
    "long/" + "n" * 200 + ".txt": b"text only",
}


def write_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_adjacent_files_of_one_name_are_a_row(tmp_path: Path, form: int) -> None:
    source = TarRows(write_tar(tmp_path / "a.tar", RECORDS, form))
    assert [source.row(index) for index in range(len(source))] == [
        {"id": "dir/a", "image": b"JPEG", "caption": "ein Hund"},
        {"id": "b", "conversations": [], "image": b"PNG", "caption": "kept"},
        {"id": "c", "image": [b"one", b"two"], "captions": ["dog", "狗"]},
        {"id": "long/" + "n" * 200, "caption": "text only"},
    ]


def test_only_offsets_stay_in_memory(tmp_path: Path) -> None:
    count = 2_000
    path = write_tar(tmp_path / "a.tar", {f"{number:06}.txt": b"x" * 600 for number in range(count)})
    tracemalloc.start()
    source = TarRows(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == count
    assert source.offsets.starts.nbytes == 8 * (count + 1)
    assert kept < 10 * count + 50_000
    assert peak < 10 * count + 300_000  # an input buffer and one header, not two thousand


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b.json": b"{"}, "not JSON"),
        ({"b.json": b"[]"}, "its JSON is a list"),
        ({"b.txt": b"\xff"}, "not UTF-8"),
        ({"b.cls": b"7", "b.npy": b""}, r"neither picture, text nor JSON among its files \(.cls, .npy\)"),
    ],
)
def test_a_broken_record_is_named_and_the_others_stay(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    source = TarRows(write_tar(tmp_path / "a.tar", {"a.txt": b"1", **files, "c.txt": b"3"}))
    with pytest.raises(InputError, match=rf"record 2 at byte \d+: .*{message}"):
        source.row(1)
    assert source.row(2) == {"id": "c", "caption": "3"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match="not a regular file"):
        TarRows(path).row(0)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.7, 0.9])
def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{number}.txt": b"x" * 600 for number in range(40)})
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InputError, match=r"cut off|not a readable tar"):
        TarRows(path)


def test_a_broken_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{number}.txt": b"x" * 600 for number in range(6)})
    content = bytearray(path.read_bytes())
    start = int(TarRows(path).offsets.starts[3])
    content[start : start + 512] = b"?" * 512
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"after 3 records, at byte {start}"):
        TarRows(path)


def test_a_header_that_broke_after_opening_is_a_broken_row(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": b"x", "a.txt": b"y", "b.txt": b"z"})
    source = TarRows(path)
    content = bytearray(path.read_bytes())
    for record, place in ((0, 1024), (1, 0)):
        start = int(source.offsets.starts[record]) + place
        content[start : start + 512] = b"?" * 512
    path.write_bytes(content)
    with pytest.raises(InputError, match="header at byte 1024"):
        source.row(0)
    with pytest.raises(InputError, match="not a readable tar"):
        source.row(1)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [MAX_RECORD_BYTES + 1, 8 << 30])
def test_a_header_as_large_as_the_file_is_not_read(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("a")
    header.type, header.size = kind, size
    with path.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(size + 4096)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a.tar: not a readable tar: a header of \d+ bytes"):
        TarRows(path)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + b"z" * 2000])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.tar"):
        TarRows(path)
