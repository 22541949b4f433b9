"""Uploaded files on a disk that is full."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from internvl.errors import EngineError
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
