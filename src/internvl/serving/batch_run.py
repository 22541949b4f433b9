"""Many requests from a JSONL file, their answers to another; resumable, and no row stops the others.

A row is `{"custom_id", "method": "POST", "url", "body"}`, as in OpenAI's batch files and vLLM's run-batch.
Rows whose answer is in the output already are left out, so that a run that was broken off goes on. Knows no
HTTP; a function answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl.errors import EngineStoppedError, InputError, RequestError
from internvl.serving.json_text import json_text
from internvl.serving.protocol import FAILED, error_object
from internvl.serving.threads import in_thread

Answer = Callable[[str, Mapping[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
"""Path and body of a request to status and body of its answer; raises nothing for a bad request, and
EngineStoppedError when no request will be answered any more."""

MAX_ROWS = 50_000
FIELDS = frozenset({"custom_id", "method", "url", "body"})
BEGINNING = b'{"id": "row-'
"""Of every line of an output."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One request. `fault` says what is wrong with the line itself."""

    custom_id: str
    url: str
    body: Mapping[str, Any]
    fault: str | None = None


@dataclass(slots=True)
class Progress:
    """Rows so far; changes while a batch runs."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    def count(self, status: int) -> None:
        if status == 200:
            self.completed += 1
        else:
            self.failed += 1


def read_rows(content: bytes) -> list[Row]:
    """All rows; faulty lines are rows with a fault. Raises RequestError for a file that is no batch."""
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines or len(lines) > MAX_ROWS:
        raise RequestError(f"a batch has 1 to {MAX_ROWS} lines, not {len(lines)}", param="input_file_id")
    rows = [_read_row(number, line) for number, line in enumerate(lines, start=1)]
    counts = Counter(row.custom_id for row in rows)
    return [
        Row(f"{row.custom_id} (line {number})", row.url, {}, f"custom_id {row.custom_id!r} is not unique")
        if counts[row.custom_id] > 1
        else row
        for number, row in enumerate(rows, start=1)
    ]


def _read_row(number: int, line: bytes) -> Row:
    name = f"line {number}"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return Row(name, "", {}, "the line is no JSON")
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        return Row(name, "", {}, "the line is no object with a custom_id")
    custom_id, url, body = found["custom_id"], found.get("url"), found.get("body")
    unknown = ", ".join(map(str, found.keys() - FIELDS))
    is_whole = found.get("method") == "POST" and isinstance(url, str) and isinstance(body, dict)
    if unknown or not is_whole:
        fault = f"unknown field {unknown}" if unknown else "a row has method POST, a url and a body"
        return Row(custom_id, "", {}, fault)
    return Row(custom_id, str(url), body or {})


def answered(output: Path) -> dict[str, int]:
    """Status by custom_id of the rows that have their answer; a last line that was cut off is taken away.

    Raises InputError for a file that is no output of a batch, and leaves it as it is.
    """
    if not output.exists():
        return {}
    content = output.read_bytes()
    end = content.rfind(b"\n") + 1
    lines, rest = content[:end].splitlines(), content[end:]
    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if (answer := _read_answer(line)) is None:
            raise _no_output(output, number)
        found[answer[0]] = answer[1]
    if not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
        raise _no_output(output, len(lines) + 1)
    if rest:
        with output.open("r+b") as file:
            file.truncate(end)
    return found


def _read_answer(line: bytes) -> tuple[str, int] | None:
    """custom_id and status of an answered row; None for a line that is none."""
    try:
        found = json.loads(line)
        custom_id, status = found["custom_id"], found["response"]["status_code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return (custom_id, status) if isinstance(custom_id, str) and isinstance(status, int) else None


def _no_output(output: Path, number: int) -> InputError:
    return InputError(
        f"line {number} of {output} is no answer of a batch, so that the file is left as it is: name another "
        "for the answers"
    )


async def run_rows(
    rows: Sequence[Row],
    output: Path,
    answer: Answer,
    *,
    concurrency: int,
    progress: Progress,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Answer all rows that have no answer yet, `concurrency` at a time; each has its line when it is done.

    A row that fails in a way nobody expected has that as its answer. Raises EngineStoppedError and OSError;
    rows without a line are left to the next run. Raises InputError as `answered` does.
    """
    done = await in_thread(answered, output)
    progress.total = len(rows)
    for status in done.values():
        progress.count(status)
    waiting: Iterator[Row] = iter([row for row in rows if row.custom_id not in done])
    with output.open("a", encoding="utf-8") as file:

        async def work() -> None:
            for row in waiting:
                if is_cancelled():
                    return
                status, line = await _answer(row, answer)
                file.write(line)
                file.flush()
                progress.count(status)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            if not isinstance(first, EngineStoppedError):
                raise first from None
            left = progress.total - progress.completed - progress.failed
            raise EngineStoppedError(
                f"{left} of {progress.total} rows have no answer yet, the next run asks them: {first}"
            ) from first


async def _answer(row: Row, answer: Answer) -> tuple[int, str]:
    """Status and line of a row. Raises EngineStoppedError."""
    if row.fault is not None:
        return 400, _line(row, 400, error_object(row.fault, code="invalid_row"))
    try:
        status, body = await answer(row.url, row.body)
        return status, _line(row, status, body)
    except EngineStoppedError:
        raise
    except Exception:  # noqa: BLE001
        _log.exception("row %r failed", row.custom_id)
        return 500, _line(row, 500, error_object(FAILED, kind="server_error"))


def _line(row: Row, status: int, body: dict[str, Any]) -> str:
    response = {"status_code": status, "request_id": body.get("id"), "body": body}
    document = {
        "id": f"row-{secrets.token_hex(8)}",
        "custom_id": row.custom_id,
        "response": response,
        "error": None,
    }
    return f"{json_text(document)}\n"
