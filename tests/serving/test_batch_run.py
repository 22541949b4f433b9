"""Rows of a batch file: each has its answer once, whatever happens to the others or to the run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from internvl.errors import EngineStoppedError, InputError, RequestError
from internvl.serving.batch_run import Progress, answered, read_rows, run_rows

URL = "/v1/chat/completions"


def line(custom_id: str, **fields: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": {}, **fields})


class Model:
    """Answers rows and remembers which; breaks down at one of them."""

    def __init__(self, breaks_at: str | None = None, failure: BaseException | None = None) -> None:
        self.breaks_at, self.failure = breaks_at, failure or KeyboardInterrupt("power failure")
        self.asked: list[str] = []

    async def __call__(self, url: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        name = body.get("name", "")
        if name == self.breaks_at:
            raise self.failure
        self.asked.append(name)
        await asyncio.sleep(0)
        return (400 if name.startswith("bad") else 200), {"id": f"x-{name}"}


def run(rows: Any, output: Path, model: Model, concurrency: int = 2) -> Progress:
    progress = Progress()
    asyncio.run(run_rows(rows, output, model, concurrency=concurrency, progress=progress))
    return progress


def names(count: int) -> list[str]:
    return [f"row-{number}" for number in range(count)]


def file_of(*custom_ids: str) -> bytes:
    return "\n".join(line(one, body={"name": one}) for one in custom_ids).encode()


def test_every_row_has_its_answer(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    progress = run(read_rows(file_of("a", "bad-b", "c")), output, Model())
    assert (progress.total, progress.completed, progress.failed) == (3, 2, 1)
    found = {row["custom_id"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert found["a"]["response"] == {"status_code": 200, "request_id": "x-a", "body": {"id": "x-a"}}
    assert found["bad-b"]["response"]["status_code"] == 400
    assert found["a"]["error"] is None


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    rows = read_rows(file_of(*names(6)))
    with pytest.raises(KeyboardInterrupt, match="power failure"):
        run(rows, output, Model(breaks_at="row-3"), concurrency=1)
    with output.open("a") as file:
        file.write('{"id": "row-0123", "custom_id": "row-3", "resp')
    again = Model()
    progress = run(rows, output, again)
    assert sorted(again.asked) == ["row-3", "row-4", "row-5"]
    assert sorted(answered(output)) == names(6)
    assert (progress.total, progress.completed) == (6, 6)
    once_more = Model()
    run(rows, output, once_more)
    assert once_more.asked == []


def test_rows_without_an_engine_are_left_to_the_next_run(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    rows = read_rows(file_of(*names(6)))
    model = Model(breaks_at="row-2", failure=EngineStoppedError("it is gone"))
    with pytest.raises(EngineStoppedError, match=r"4 of 6 rows .* next run asks them: it is gone"):
        run(rows, output, model, concurrency=1)
    assert answered(output) == {"row-0": 200, "row-1": 200}
    assert run(rows, output, Model()).completed == 6


def test_a_row_that_fails_unexpectedly_is_one_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out.jsonl"
    progress = run(read_rows(file_of("a", "b", "c")), output, Model("b", RuntimeError("no such thing")))
    assert answered(output) == {"a": 200, "b": 500, "c": 200}
    assert (progress.completed, progress.failed) == (2, 1)
    assert "no such thing" not in output.read_text()
    assert "no such thing" in caplog.text


def test_half_a_surrogate_pair_stays_what_it_was(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    rows = read_rows(file_of("\ud800", "ü \\\udfff"))
    run(rows, output, Model())
    assert answered(output) == {"\ud800": 200, "ü \\\udfff": 200}
    again = Model()
    run(rows, output, again)
    assert again.asked == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "no JSON"),
        ("[" * 5000, "no JSON"),
        ("[]", "no object with a custom_id"),
        ('{"custom_id": 1}', "no object with a custom_id"),
        (line("a", method="GET"), "method POST"),
        (line("a", body=[]), "method POST"),
        (line("a", more=1), "unknown field more"),
        (f"{line('a')}\n{line('a')}", "not unique"),
    ],
)
def test_faulty_lines_are_rows_with_a_fault(tmp_path: Path, text: str, fault: str) -> None:
    rows = read_rows(f"{text}\n{line('good', body={'name': 'good'})}\n\n".encode())
    assert rows[-1].fault is None
    assert fault in (rows[0].fault or "")
    output = tmp_path / "out.jsonl"
    model = Model()
    progress = run(rows, output, model)
    assert (progress.completed, progress.failed) == (1, len(rows) - 1)
    assert model.asked == ["good"]


ANSWER = '{"id": "row-1", "custom_id": "a", "response": {"status_code": 200}}\n'


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("my only notes, without a newline", 1),
        ("notes\n", 1),
        (f"{ANSWER}notes\n{ANSWER}", 2),
        (f"{ANSWER}notes", 2),
        (f"{ANSWER}[]\n", 2),
        (f"{ANSWER}[[[", 2),
        (line("a"), 1),
        (f"{line('a')}\n", 1),
        ('{"custom_id": "a", "response": null}\n', 1),
        ('{"custom_id": "a", "response": {"status_code": "200"}}\n', 1),
        ('{"custom_id": 1, "response": {"status_code": 200}}\n', 1),
        (f"{'[' * 5000}\n", 1),
    ],
)
def test_a_file_that_is_no_output_stays_as_it_is(tmp_path: Path, text: str, number: int) -> None:
    output = tmp_path / "notes.txt"
    output.write_text(text)
    model = Model()
    with pytest.raises(InputError, match=f"line {number} of .*notes.txt is no answer .* name another"):
        run(read_rows(file_of("a")), output, model)
    assert output.read_text() == text
    assert model.asked == []


@pytest.mark.parametrize("rest", ["", "{", '{"id": "row-', '{"id": "row-9", "custom_id": "b", "resp'])
def test_what_was_cut_off_is_taken_away(tmp_path: Path, rest: str) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text(ANSWER + rest)
    assert answered(output) == {"a": 200}
    assert output.read_text() == ANSWER


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="1 to 50000 lines"):
        read_rows(content)
