"""Uploaded files on a disk that is full, and in the hands of many at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from internvl.errors import EngineError, RequestError
from internvl.serving import descriptions
from internvl.serving.files import FileStore
from tests.serving.conftest import error_of, full_disk


@pytest.mark.parametrize("num_bytes", [10, 100])
def test_a_file_that_cannot_be_kept_leaves_nothing(tmp_path: Path, num_bytes: int) -> None:
    """There is no room for the content, or none for the description."""
    files = FileStore(tmp_path)
    with full_disk(num_bytes), pytest.raises(EngineError, match="could not be kept"):
        files.add(b"x" * 50, "a.txt", "user_data")
    assert list(tmp_path.iterdir()) == []
    assert files.content(files.add(b"x" * 50, "a.txt", "user_data").id) == b"x" * 50


def test_an_upload_that_finds_no_room_is_not_the_clients_fault(http: httpx.Client) -> None:
    """Large ones go through a file while they are read."""
    words = {"files": {"file": ("a.txt", b"x" * 3_000_000)}, "data": {"purpose": "user_data"}}
    with full_disk(100):
        refused = http.post("/v1/files", **words)  # type: ignore[arg-type]
    assert "could not be kept" in error_of(refused, 503)["message"]
    assert int(refused.headers["retry-after"]) > 0
    kept = http.post("/v1/files", **words).json()  # type: ignore[arg-type]
    assert http.delete(f"/v1/files/{kept['id']}").json()["deleted"]


def test_files_that_come_together_stay_below_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileStore(tmp_path, max_bytes=250)
    write_bytes = Path.write_bytes

    def write_slowly(path: Path, content: bytes) -> int:
        time.sleep(0.05)
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_slowly)

    def add(_: int) -> str:
        try:
            files.add(b"x" * 100, "a.txt", "user_data")
        except RequestError as reason:
            return str(reason.code)
        return "kept"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(add, range(8)))
    assert sorted(found) == ["kept"] * 2 + ["storage_full"] * 6
    assert sum(one.bytes for one in files.list()) == 200


def test_room_of_a_file_that_was_not_kept_is_free_again(tmp_path: Path) -> None:
    files = FileStore(tmp_path, max_bytes=100)
    with full_disk(10), pytest.raises(EngineError):
        files.add(b"x" * 100, "a.txt", "user_data")
    kept = files.add(b"x" * 100, "a.txt", "user_data")
    with pytest.raises(RequestError, match="1 bytes do not fit beside 100 bytes"):
        files.add(b"x", "a.txt", "user_data")
    files.delete(kept.id)
    files.add(b"x", "a.txt", "user_data")


def test_files_may_go_while_they_are_listed_and_read(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            files.delete(files.add(b"x", "a.txt", "user_data").id)

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            for one in files.list():
                assert files.content(one.id) in (b"x", None)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert files.list() == []


def test_a_file_that_goes_before_it_is_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes it is faster by one step."""
    files = FileStore(tmp_path)
    read = descriptions.read

    def go(form: TypeAdapter[Any], path: Path) -> object:
        path.unlink()
        return read(form, path)

    for step in (lambda id: [files.list(), files.find(id)], files.delete):
        kept = files.add(b"x", "a.txt", "user_data")
        with monkeypatch.context() as patch:
            patch.setattr(descriptions, "read", go)
            with pytest.raises(RequestError, match="there is no file"):
                step(kept.id)
    assert files.list() == []


def test_a_damaged_description_keeps_no_other_file_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FileStore(tmp_path)
    kept, damaged = (files.add(b"x", "a.txt", "user_data") for _ in range(2))
    path = tmp_path / f"{damaged.id}.json"
    path.write_text('{"id": 1}')
    files = FileStore(tmp_path)
    assert caplog.text.count(str(path)) == 1
    assert files.list() == [kept]
    with pytest.raises(RequestError, match=f"{damaged.id} is damaged") as caught:
        files.find(damaged.id)
    assert caught.value.status == 404
    files.add(b"x", "a.txt", "user_data")
    assert path.read_text() == '{"id": 1}'
