"""Uploaded files in one folder: content and a description each, under a name that is made here.

What a client calls a file is kept as a word and never becomes a path. Safe under threads. Knows no HTTP.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import TypeAdapter

from internvl.errors import EngineError, RequestError
from internvl.serving import descriptions

ID = re.compile(r"file-[0-9a-f]{32}")
STORAGE_FULL = "storage_full"
"""Code of the error when a file does not fit beside the others."""
PURPOSES = ("batch", "batch_output", "vision", "user_data", "assistants")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Description of a file."""

    id: str
    filename: str
    purpose: str
    created_at: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "object": "file", "status": "processed"}


FORM = TypeAdapter(Upload)


class FileStore:
    """Files below `folder`, together at most `max_bytes`."""

    def __init__(self, folder: Path, *, max_bytes: int = 2**30) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._coming: dict[str, int] = {}
        """Bytes of files that are being written, by id: their room is taken already."""
        self.list(tells=True)

    def add(self, content: bytes, filename: str, purpose: str) -> Upload:
        """Keep a file. Raises RequestError for a purpose that does not exist and when there is no room, and
        EngineError where the disk has none."""
        if purpose not in PURPOSES:
            raise RequestError(
                f"purpose {purpose[:40]!r} does not exist; there are {', '.join(PURPOSES)}", param="purpose"
            )
        upload = Upload(
            id=f"file-{secrets.token_hex(16)}",
            filename=filename[:255],
            purpose=purpose,
            created_at=int(time.time()),
            bytes=len(content),
        )
        self._reserve(upload)
        try:
            self._write(upload, content)
        finally:
            with self._lock:  # nobody counts in between, when it is neither coming nor seen in the folder
                del self._coming[upload.id]
        return upload

    def list(self, *, tells: bool = False) -> list[Upload]:
        """All files, oldest first, but those whose descriptions are damaged; with `tells`, these are
        logged."""
        found = descriptions.read_all(FORM, self.folder.glob("file-*.json"), tells=tells)
        return sorted(found, key=lambda upload: (upload.created_at, upload.id))

    def find(self, id: str) -> Upload:
        """Raises RequestError with 404 for a file that is not there, or whose description is damaged."""
        if ID.fullmatch(id):
            with suppress(FileNotFoundError):
                return descriptions.read(FORM, self._path(id))
        raise _not_found(id)

    def content(self, id: str) -> bytes | None:
        """The content, or None for a file that is not there."""
        if ID.fullmatch(id) and self._path(id).is_file():
            with suppress(FileNotFoundError):  # deleted meanwhile
                return self._content_path(id).read_bytes()
        return None

    def delete(self, id: str) -> None:
        """Raises RequestError with 404 for a file that is not there."""
        try:
            self._path(self.find(id).id).unlink()
        except FileNotFoundError as reason:
            raise _not_found(id) from reason
        self._content_path(id).unlink(missing_ok=True)

    def _reserve(self, upload: Upload) -> None:
        with self._lock:
            sizes = self._coming | {one.id: one.bytes for one in self.list()}
            used = sum(sizes.values())
            if used + upload.bytes > self.max_bytes:
                raise RequestError(
                    f"{upload.bytes} bytes do not fit beside {used} bytes of other files, the limit is "
                    f"{self.max_bytes}: delete some",
                    status=413,
                    param="file",
                    code=STORAGE_FULL,
                )
            self._coming[upload.id] = upload.bytes

    def _write(self, upload: Upload, content: bytes) -> None:
        try:
            self._content_path(upload.id).write_bytes(content)
            # The description comes last: a file is there when it is whole.
            descriptions.write(upload, self._path(upload.id))
        except OSError as reason:
            self._content_path(upload.id).unlink(missing_ok=True)
            raise EngineError(f"the file could not be kept: {reason.strerror}") from reason

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def _content_path(self, id: str) -> Path:
        return self.folder / f"{id}.content"


def _not_found(id: str) -> RequestError:
    return RequestError(f"there is no file {id[:80]!r}", status=404, param="file_id", code="file_not_found")
