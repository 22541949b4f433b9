"""Batches of a server: a description on disk each, and a task that works on it.

What was broken off with the server goes on with the next one on the same folder. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from internvl.errors import EngineError, EngineStoppedError, RequestError
from internvl.serving import descriptions
from internvl.serving.batch_run import Answer, Progress, Row, read_rows, run_rows
from internvl.serving.files import STORAGE_FULL, FileStore
from internvl.serving.protocol import FAILED
from internvl.serving.threads import in_thread

ID = re.compile(r"batch-[0-9a-f]{32}")
ENDED = frozenset({"completed", "cancelled", "failed"})
CANCELLING = "cancelling"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Description of a batch. Times are in seconds since 1970. `error` says why it has failed."""

    id: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    created_at: int
    status: str = "in_progress"
    output_file_id: str | None = None
    completed_at: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    error: str | None = None


FORM = TypeAdapter(Batch)


class Batches:
    """Runs batches one after the other, `concurrency` rows of one at a time."""

    def __init__(self, files: FileStore, answer: Answer, *, concurrency: int) -> None:
        self.files, self.answer, self.concurrency = files, answer, concurrency
        self._progress: dict[str, Progress] = {}
        self._cancelled: set[str] = set()
        self._not_kept: dict[str, Batch] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batches:
        for batch in self.newest_first(tells=True):
            if batch.status not in ENDED:
                self._waiting.put_nowait(batch.id)
            if batch.status == CANCELLING:
                self._cancelled.add(batch.id)
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Rows that run are given up; they have no line yet and are answered again."""
        assert self._worker is not None
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)

    async def create(
        self, input_file_id: str, endpoint: str, window: str, metadata: dict[str, str] | None
    ) -> Batch:
        """Take on a file. Raises RequestError for one that is not there or holds no rows, and EngineError
        where there is no room for the description."""
        batch = await in_thread(self._describe, input_file_id, endpoint, window, metadata)
        self._waiting.put_nowait(batch.id)
        return batch

    def _describe(
        self, input_file_id: str, endpoint: str, window: str, metadata: dict[str, str] | None
    ) -> Batch:
        """A new batch, written down."""
        self._rows(input_file_id)
        batch = Batch(
            id=f"batch-{secrets.token_hex(16)}",
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window=window,
            metadata=metadata,
            created_at=int(time.time()),
        )
        self._write(batch)
        return batch

    def find(self, id: str) -> Batch:
        """Raises RequestError with 404 for a batch that is not there, or whose description is damaged."""
        if id in self._not_kept:
            return self._not_kept[id]
        if not ID.fullmatch(id) or not self._path(id).is_file():
            raise RequestError(
                f"there is no batch {id[:80]!r}", status=404, param="batch_id", code="batch_not_found"
            )
        return descriptions.read(FORM, self._path(id))

    def newest_first(self, *, tells: bool = False) -> list[Batch]:
        """All batches but those whose descriptions are damaged; with `tells`, these are logged."""
        written = descriptions.read_all(FORM, self.files.folder.glob("batch-*.json"), tells=tells)
        found = [self._not_kept.get(batch.id, batch) for batch in written]
        return sorted(found, key=lambda batch: (batch.created_at, batch.id), reverse=True)

    def cancel(self, id: str) -> Batch:
        """No further row is begun, by the next server neither."""
        batch = self.find(id)
        if batch.status in ENDED:
            raise RequestError(f"{id} is {batch.status} already", param="batch_id")
        self._cancelled.add(id)
        stopping = replace(batch, status=CANCELLING)
        with suppress(EngineError):  # without room for it this server still knows
            self._write(stopping)
        return stopping

    def as_json(self, batch: Batch) -> dict[str, Any]:
        """As the protocol has it."""
        progress = self._progress.get(batch.id)
        counts = asdict(progress) if progress else batch.counts or {"total": 0, "completed": 0, "failed": 0}
        document = {**asdict(batch), "object": "batch", "request_counts": counts, "errors": None}
        if batch.error is not None:
            told = {"code": "batch_failed", "message": batch.error, "param": None, "line": None}
            document["errors"] = {"object": "list", "data": [told]}
        del document["counts"], document["error"]
        is_stopping = batch.id in self._cancelled and batch.status not in ENDED
        return {**document, "status": CANCELLING if is_stopping else batch.status}

    async def _work(self) -> None:
        """Batch after batch; what befalls one keeps no other from running."""
        while True:
            id = await self._waiting.get()
            try:
                await self._run(self.find(id))
            except Exception:  # noqa: BLE001 - its description cannot be read
                _log.exception("%s cannot be run", id)

    async def _run(self, batch: Batch) -> None:
        progress = self._progress[batch.id] = Progress()
        lines = self.files.folder / f"{batch.id}.lines"
        try:
            output = await self._answer_rows(batch, lines, progress)
        except EngineStoppedError:
            del self._progress[batch.id]  # the next server on this folder goes on
            return
        except Exception as reason:  # noqa: BLE001
            # The file was deleted meanwhile, there is no room for the answers, or what nobody expected.
            _log.exception("%s has failed", batch.id)
            failed = replace(batch, status="failed", error=_told(reason))
            self._end(failed, progress, is_final=not _may_pass(reason))
            return
        status = "cancelled" if batch.id in self._cancelled else "completed"
        if self._end(replace(batch, status=status, output_file_id=output), progress):
            with suppress(OSError):
                lines.unlink(missing_ok=True)

    async def _answer_rows(self, batch: Batch, lines: Path, progress: Progress) -> str:
        """The id of the file with all answers. `lines` holds those that are there already."""
        found = await in_thread(self._rows, batch.input_file_id)
        rows = [self._of_endpoint(row, batch.endpoint) for row in found]
        await run_rows(
            rows,
            lines,
            self.answer,
            concurrency=self.concurrency,
            progress=progress,
            is_cancelled=lambda: batch.id in self._cancelled,
        )
        return await in_thread(self._add_output, lines, f"{batch.id}.jsonl")

    def _add_output(self, lines: Path, name: str) -> str:
        return self.files.add(lines.read_bytes(), name, "batch_output").id

    def _end(self, batch: Batch, progress: Progress, *, is_final: bool = True) -> bool:
        """Whether it is written down that the batch has ended; if not, the next server runs it again."""
        ended = replace(batch, completed_at=int(time.time()), counts=asdict(progress))
        is_kept = False
        if is_final:
            with suppress(EngineError):
                self._write(ended)
                is_kept = True
        if not is_kept:
            self._not_kept[batch.id] = ended
        del self._progress[batch.id]
        self._cancelled.discard(batch.id)
        return is_kept

    def _of_endpoint(self, row: Row, endpoint: str) -> Row:
        if row.fault is None and row.url != endpoint:
            return replace(row, fault=f"the row asks {row.url[:80]!r} in a batch for {endpoint!r}")
        return row

    def _rows(self, file_id: str) -> list[Row]:
        content = self.files.content(file_id)
        if content is None:
            raise RequestError(
                f"there is no file {file_id[:80]!r}", status=404, param="input_file_id", code="file_not_found"
            )
        return read_rows(content)

    def _write(self, batch: Batch) -> None:
        try:
            descriptions.write(batch, self._path(batch.id))
        except OSError as reason:
            raise EngineError(f"the batch could not be kept: {reason.strerror}") from reason

    def _path(self, id: str) -> Path:
        return self.files.folder / f"{id}.json"


def _may_pass(reason: Exception) -> bool:
    """Whether the next server may have more luck: there was no room, or the disk failed."""
    return isinstance(reason, OSError | EngineError) or getattr(reason, "code", None) == STORAGE_FULL


def _told(reason: Exception) -> str:
    """For strangers, with what they can do."""
    if not _may_pass(reason):
        return str(reason) if isinstance(reason, RequestError) else FAILED
    what = reason.strerror if isinstance(reason, OSError) else str(reason)
    return f"{what}; its answers are kept, and a server that is started on the same folder goes on with them"
