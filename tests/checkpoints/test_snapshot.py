"""The cache while others use it: nothing is ever half there, and nobody's record is lost."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest

from internvl.checkpoints import snapshot as snapshot_module
from internvl.checkpoints.snapshot import Snapshot, _link, write_atomically


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blobs" / "a"
    path.parent.mkdir()
    path.write_bytes(b"contents")
    return path


@pytest.fixture
def pointer(tmp_path: Path) -> Path:
    path = tmp_path / "snapshots" / "c" / "model.bin"
    path.parent.mkdir(parents=True)
    return path


def refuse(*_: object) -> None:
    raise OSError(1, "no links here")


def test_a_link_that_is_right_is_left_alone(
    blob: Path, pointer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may be opening it."""
    _link(blob, pointer)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    _link(blob, pointer)
    assert pointer.is_symlink()
    assert pointer.read_bytes() == b"contents"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_replaced_in_one_step(
    has_links: bool, blob: Path, pointer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def watched(make: Any) -> Any:
        def watch(*arguments: Path) -> None:
            seen.append(pointer.read_bytes())
            make(*arguments)
            seen.append(pointer.read_bytes())

        return watch

    pointer.write_bytes(b"old")
    monkeypatch.setattr(Path, "symlink_to", watched(Path.symlink_to) if has_links else refuse)
    monkeypatch.setattr(shutil, "copyfile", watched(shutil.copyfile))
    _link(blob, pointer)
    assert seen == [b"old", b"old"]
    assert pointer.read_bytes() == b"contents"
    assert pointer.is_symlink() == has_links
    assert list(pointer.parent.iterdir()) == [pointer]


def test_a_copy_that_fails_leaves_what_was_there(
    blob: Path, pointer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(b"cont")
        raise OSError(28, "no space left")

    pointer.write_bytes(b"old")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(OSError, match="no space left"):
        _link(blob, pointer)
    assert pointer.read_bytes() == b"old"
    assert list(pointer.parent.iterdir()) == [pointer]


def test_two_records_at_once_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(tmp_path / "models--a--b", "c" * 40)
    meeting, read = Barrier(2), snapshot_module._read_json

    def meet(path: Path) -> object:
        found = read(path)
        with suppress(BrokenBarrierError):
            meeting.wait(0.3)
        return found

    monkeypatch.setattr(snapshot_module, "_read_json", meet)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: snapshot.record({name: 1}), "ab"))
    assert set(snapshot.missing()) == {"a", "b"}


def test_two_may_write_a_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, write_text = Barrier(2), Path.write_text

    def meet(path: Path, *arguments: Any, **options: Any) -> int:
        count = write_text(path, *arguments, **options)
        meeting.wait(5)
        return count

    monkeypatch.setattr(Path, "write_text", meet)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: write_atomically(tmp_path / "ref", json.dumps(number)), range(2)))
    assert json.loads((tmp_path / "ref").read_text()) in (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["ref"]
