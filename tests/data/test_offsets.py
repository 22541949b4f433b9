"""Byte offsets of records."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl.data import offsets
from internvl.data.offsets import index_lines
from internvl.errors import InputError

LINES = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, is_ended=st.booleans())
def test_every_line_that_is_not_blank_is_found(tmp_path: Path, lines: list[bytes], is_ended: bool) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(lines) + b"\n" * is_ended)
    found = index_lines(path)
    expected = [
        (number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()
    ]
    read = [(found.line(index), found.read(index)) for index in range(len(found))]
    assert [(number, line.rstrip()) for number, line in read] == [
        (number, line.rstrip()) for number, line in expected
    ]


def test_only_offsets_stay_in_memory(tmp_path: Path) -> None:
    """A file of 20 MB leaves eight bytes a line behind, and indexing it needs no more than a few lines."""
    path, count, line = tmp_path / "large.jsonl", 20_000, b'{"text": "' + b"x" * 1_000 + b'"}\n'
    path.write_bytes(line * count)
    tracemalloc.start()
    found = index_lines(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    assert found.starts.dtype == np.uint64
    assert found.starts.nbytes == 8 * (count + 1)
    assert kept < 10 * count  # room to grow, as arrays have
    assert peak < 25 * count
    assert found.read(count - 1) == line


def test_a_line_over_the_limit_is_a_record_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets, "MAX_RECORD_BYTES", 10)
    path = tmp_path / "lines"
    path.write_bytes(b"short\n" + b"y" * 35 + b"\nend\n")
    found = index_lines(path)
    assert len(found) == 3
    assert found.read(2) == b"end\n"
    with pytest.raises(InputError, match="36 bytes, the limit is 10"):
        found.read(1)


def test_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n")
    found = index_lines(path)
    path.write_bytes(b"one\nt")
    with pytest.raises(InputError, match="changed since"):
        found.read(1)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        found.read(0)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_is_refused(tmp_path: Path, index: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n")
    with pytest.raises(IndexError, match="2 records"):
        index_lines(path).read(index)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        index_lines(tmp_path)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*File name too long"):
        index_lines(tmp_path / ("x" * 256))
