"""Batches through the official client, against a live server and from the command line."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from internvl import ChatModel
from internvl.cli import run_batch
from internvl.cli.main import main
from internvl.engine.settings import EngineSettings
from internvl.errors import EngineError
from internvl.serving import batches as batches_module
from internvl.serving.app import make_app
from internvl.serving.batches import Batch, Batches
from internvl.serving.files import FileStore
from internvl.serving.routes_batches import BatchRequest, create_batch
from internvl.serving.settings import Settings
from tests.serving.conftest import JSON, encoded, error_of, full_disk, image_part, picture, serving

CHAT = "/v1/chat/completions"


def row(custom_id: str, content: Any = "hi", url: str = CHAT, **fields: Any) -> str:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3, **fields}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


ROWS = "\n".join(
    [
        row("plain"),
        row("picture", [image_part(encoded(picture(20, 20)))]),
        row("bad-field", no_such=1),
        row("bad-picture", [image_part(b"junk")]),
        row("streamed", stream=True),
        row("elsewhere", url="/metrics"),
        "no json",
    ]
)
STATUSES = {
    "plain": 200, "picture": 200, "bad-field": 400, "bad-picture": 400, "streamed": 400, "elsewhere": 400,
    "line 7": 400,
}  # fmt: skip


def statuses(text: str) -> dict[str, int]:
    rows = [json.loads(line) for line in text.splitlines()]
    return {one["custom_id"]: one["response"]["status_code"] for one in rows}


def wait(client: OpenAI, id: str, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while (batch := client.batches.retrieve(id)).status == "in_progress":
        assert time.monotonic() < until, "the batch does not end"
        time.sleep(0.05)
    return batch


def test_a_batch_of_the_official_client(client: OpenAI) -> None:
    uploaded = client.files.create(file=("rows.jsonl", ROWS.encode()), purpose="batch")
    made = client.batches.create(
        input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h", metadata={"a": "b"}
    )
    batch = wait(client, made.id)
    assert batch.status == "completed"
    assert batch.metadata == {"a": "b"}
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        7,
        2,
        5,
    )
    assert statuses(client.files.content(batch.output_file_id).text) == STATUSES
    assert made.id in [one.id for one in client.batches.list()]


def test_half_a_surrogate_pair_breaks_no_list(http: httpx.Client, client: OpenAI) -> None:
    uploaded = client.files.create(file=("rows.jsonl", ROWS.encode()), purpose="batch")
    body = {"input_file_id": uploaded.id, "endpoint": CHAT, "completion_window": "24h"}
    made = http.post("/v1/batches", content=json.dumps({**body, "metadata": {"k": "\ud800"}}), headers=JSON)
    assert made.json()["metadata"] == {"k": "\ud800"}
    assert made.json()["id"] in [one["id"] for one in http.get("/v1/batches").json()["data"]]
    wait(client, made.json()["id"])


def test_what_is_no_batch(http: httpx.Client, client: OpenAI) -> None:
    fields = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}
    assert error_of(http.post("/v1/batches", json=fields), 404)["param"] == "input_file_id"
    assert (
        error_of(http.post("/v1/batches", json={**fields, "endpoint": "/metrics"}), 400)["param"]
        == "endpoint"
    )
    empty = client.files.create(file=("rows.jsonl", b"\n"), purpose="batch")
    assert error_of(http.post("/v1/batches", json={**fields, "input_file_id": empty.id}), 400)["message"]
    assert error_of(http.get("/v1/batches/batch-1"), 404)["code"] == "batch_not_found"


def test_a_batch_goes_on_with_the_next_server(model: ChatModel, tmp_path: Path) -> None:
    settings = Settings(files_path=tmp_path, engine=EngineSettings(max_running=1))
    long = "\n".join(row(f"r{number}", max_tokens=400, ignore_eos=True) for number in range(8))
    with (
        serving(make_app(model, settings)) as address,
        OpenAI(base_url=f"{address}/v1", api_key="x") as client,
    ):
        uploaded = client.files.create(file=("rows.jsonl", long.encode()), purpose="batch")
        made = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
        lines = tmp_path / f"{made.id}.lines"
        until = time.monotonic() + 60
        while not (lines.exists() and lines.read_bytes().count(b"\n")):
            assert time.monotonic() < until, "no row was answered"
            time.sleep(0.01)
    before = lines.read_text()
    assert 1 <= before.count("\n") < 8
    with (
        serving(make_app(model, settings)) as address,
        OpenAI(base_url=f"{address}/v1", api_key="x") as client,
    ):
        batch = wait(client, made.id)
        assert batch.status == "completed"
        after = client.files.content(str(batch.output_file_id)).text
    assert after.startswith(before)
    assert statuses(after) == {f"r{number}": 200 for number in range(8)}


def test_a_full_disk_fails_a_batch_and_no_other(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    upload = files.add(row("a").encode(), "rows.jsonl", "batch")

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {"text": url * 100}

    async def end(batches: Batches, id: str) -> str:
        while batches.find(id).status == "in_progress":
            await asyncio.sleep(0.01)
        return batches.find(id).status

    async def main() -> None:
        async with Batches(files, answer, concurrency=1) as batches:
            with full_disk(1000):  # there is room for the description
                assert await end(batches, (await batches.create(upload.id, CHAT, "24h", None)).id) == "failed"
            with full_disk(100), pytest.raises(EngineError, match="could not be kept"):
                await batches.create(upload.id, CHAT, "24h", None)
            unlucky = await batches.create(upload.id, CHAT, "24h", None)
            with full_disk(100):
                assert await end(batches, unlucky.id) == "failed"
            good = await batches.create(upload.id, CHAT, "24h", None)
            assert await end(batches, good.id) == "completed"
        async with Batches(files, answer, concurrency=1) as batches:  # it was never written down as failed
            assert await end(batches, unlucky.id) == "completed"

    asyncio.run(asyncio.wait_for(main(), 60))
    assert not list(tmp_path.glob("*.part"))


async def ended(batches: Batches, id: str) -> dict[str, Any]:
    while batches.find(id).status in ("in_progress", "cancelling"):
        await asyncio.sleep(0.01)
    return batches.as_json(batches.find(id))


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_answers_without_room_for_them_are_kept(tmp_path: Path, is_cancelled: bool) -> None:
    files = FileStore(tmp_path, max_bytes=3000)
    upload = files.add("\n".join(map(row, "abcdef")).encode(), "rows.jsonl", "batch")
    asked: list[str] = []

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(url)
        if is_cancelled and len(asked) == 3:
            batches.cancel(id)
        return 200, {"text": "y" * 900}

    async def main() -> None:
        nonlocal batches, id
        async with Batches(files, answer, concurrency=1) as batches:
            id = (await batches.create(upload.id, CHAT, "24h", None)).id
            failed = await ended(batches, id)
        assert (failed["status"], failed["output_file_id"]) == ("failed", None)
        (error,) = failed["errors"]["data"]
        assert "the limit is 3000: delete some; its answers are kept" in error["message"]
        roomy = FileStore(tmp_path)
        async with Batches(roomy, answer, concurrency=1) as batches:
            document = await ended(batches, id)
        assert document["status"] == ("cancelled" if is_cancelled else "completed")
        assert document["errors"] is None
        output = (roomy.content(document["output_file_id"]) or b"").decode()
        assert statuses(output) == dict.fromkeys("abc" if is_cancelled else "abcdef", 200)
        assert len(asked) == len(output.splitlines())

    batches, id = Batches(files, answer, concurrency=1), ""
    asyncio.run(asyncio.wait_for(main(), 60))
    assert not list(tmp_path.glob("*.lines"))


def test_a_batch_that_has_lost_its_rows_has_failed_for_good(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    upload = files.add(row("a").encode(), "rows.jsonl", "batch")

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        raise AssertionError("there is no row")

    async def main() -> None:
        async with Batches(files, answer, concurrency=1) as batches:
            id = (await batches.create(upload.id, CHAT, "24h", None)).id
            files.delete(upload.id)
            document = await ended(batches, id)
        async with Batches(files, answer, concurrency=1) as batches:
            assert batches.as_json(batches.find(id)) == document
        assert document["status"] == "failed"
        assert document["errors"]["data"][0]["message"] == f"there is no file {upload.id!r}"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_cancelled_batch_stays_cancelled_with_the_next_server(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    upload = files.add("\n".join(map(row, "abc")).encode(), "rows.jsonl", "batch")
    asked: list[str] = []

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(url)
        if len(asked) == 2:
            await asyncio.Event().wait()
        return 200, {}

    async def main() -> None:
        async with Batches(files, answer, concurrency=1) as batches:
            id = (await batches.create(upload.id, CHAT, "24h", None)).id
            while len(asked) < 2:
                await asyncio.sleep(0.01)
            assert batches.cancel(id).status == "cancelling"
            assert batches.as_json(batches.find(id))["status"] == "cancelling"
        async with Batches(files, answer, concurrency=1) as batches:
            assert batches.as_json(batches.find(id))["status"] == "cancelling"
            document = await ended(batches, id)
        assert document["status"] == "cancelled"
        output = files.content(document["output_file_id"]) or b""
        assert statuses(output.decode()) == {"a": 200}
        assert len(asked) == 2

    asyncio.run(asyncio.wait_for(main(), 60))


def test_files_are_read_and_written_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loop itself is told of a batch, which asyncio checks with `debug`."""
    files = FileStore(tmp_path)
    upload = files.add(row("a").encode(), "rows.jsonl", "batch")
    loop_thread, found = threading.get_ident(), []

    def seen(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def called(*words: Any, **options: Any) -> Any:
            found.append((name, threading.get_ident() == loop_thread))
            return inner(*words, **options)

        monkeypatch.setattr(owner, name, called)

    for owner, name in ((batches_module, "read_rows"), (Path, "read_bytes"), (files, "add")):
        seen(owner, name)

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {}

    async def main() -> None:
        async with Batches(files, answer, concurrency=1) as batches:
            await asyncio.sleep(0)  # the worker waits for a batch by now
            asked = BatchRequest(input_file_id=upload.id, endpoint=CHAT, completion_window="24h")
            made = await create_batch(asked, batches)
            (tmp_path / f"{made['id']}.lines").touch()  # as a run that was broken off leaves it
            assert (await ended(batches, made["id"]))["status"] == "completed"

    asyncio.run(asyncio.wait_for(main(), 60), debug=True)
    assert {name for name, _ in found} == {"read_rows", "read_bytes", "add"}
    assert not [name for name, is_in_loop in found if is_in_loop]


def test_a_batch_that_cannot_be_run_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One breaks in a way nobody expected, the description of another is damaged."""
    files = FileStore(tmp_path)
    upload = files.add(row("\ud800").encode(), "rows.jsonl", "batch")

    all_are_made = asyncio.Event()

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        await all_are_made.wait()
        return 200, {"text": "\udfff"}

    async def main() -> None:
        async with Batches(files, answer, concurrency=1) as batches:

            def of_endpoint(row: Any, endpoint: str) -> Any:
                if endpoint == "/broken":
                    raise RuntimeError("no such thing")
                return row

            monkeypatch.setattr(batches, "_of_endpoint", of_endpoint)
            _, broken, damaged, good = [
                await batches.create(upload.id, endpoint, "24h", None)
                for endpoint in (CHAT, "/broken", CHAT, CHAT)
            ]
            (tmp_path / f"{damaged.id}.json").write_text("{")
            all_are_made.set()
            while batches.find(good.id).status == "in_progress":
                await asyncio.sleep(0.01)
            assert [batches.find(one.id).status for one in (broken, good)] == ["failed", "completed"]
            output = batches.files.content(str(batches.find(good.id).output_file_id))
            assert statuses((output or b"").decode()) == {"\ud800": 200}

    asyncio.run(asyncio.wait_for(main(), 60))
    assert "no such thing" in caplog.text


DAMAGED: dict[str, bytes | dict[str, Any]] = {
    "no JSON": b"{",
    "no text": b"\xff",
    "too deep": b"[" * 100_000,
    "no object": b"[]",
    "fields are missing": b'{"id": "batch-1"}',
    "a field is no time": {"created_at": "soon"},
    "of another batch": {"id": "batch-0"},
}
"""What stands in a description, or in fields of a good one."""


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_description_keeps_no_server_from_starting(
    model: ChatModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    good = Batch(
        id=f"batch-{'a' * 32}",
        input_file_id="file-1",
        endpoint=CHAT,
        completion_window="24h",
        metadata=None,
        created_at=1,
        status="completed",
    )
    (tmp_path / f"{good.id}.json").write_text(json.dumps(asdict(good)))
    id, content = f"batch-{'b' * 32}", DAMAGED[kind]
    if isinstance(content, dict):
        content = json.dumps({**asdict(good), "id": id, **content}).encode()
    path = tmp_path / f"{id}.json"
    path.write_bytes(content)
    with (
        serving(make_app(model, Settings(files_path=tmp_path))) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        assert [one["id"] for one in http.get("/v1/batches").json()["data"]] == [good.id]
        for answer in (http.get(f"/v1/batches/{id}"), http.post(f"/v1/batches/{id}/cancel")):
            assert f"{id} is damaged" in error_of(answer, 404)["message"]
    told = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
    assert len(told) == 1
    assert "is left alone" in told[0]
    assert "\n" not in told[0]
    assert path.read_bytes() == content


def test_a_batch_can_be_cancelled(model: ChatModel) -> None:
    long = "\n".join(row(f"r{number}", max_tokens=400, ignore_eos=True) for number in range(20))
    settings = Settings(engine=EngineSettings(max_running=1))
    with (
        serving(make_app(model, settings)) as address,
        OpenAI(base_url=f"{address}/v1", api_key="x") as client,
    ):
        uploaded = client.files.create(file=("rows.jsonl", long.encode()), purpose="batch")
        made = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
        assert client.batches.cancel(made.id).status == "cancelling"
        until = time.monotonic() + 60
        while (batch := client.batches.retrieve(made.id)).status != "cancelled":
            assert time.monotonic() < until, "the batch does not end"
            time.sleep(0.02)
        assert batch.request_counts is not None
        assert batch.request_counts.completed < 20


def test_the_command_answers_the_same_rows(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(ROWS)
    words = ["run-batch", "-i", str(rows), "-o", str(output), "--model", str(checkpoint), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], told["completed"], told["failed"]) == (7, 2, 5)
    assert statuses(output.read_text()) == STATUSES
    size = output.stat().st_size
    assert main(words) == 0
    assert output.stat().st_size == size
    assert main(["run-batch", "-i", str(tmp_path / "none"), "-o", str(output)]) == 2


def test_the_command_answers_no_file_into_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, link = tmp_path / "rows.jsonl", tmp_path / "link.jsonl"
    rows.write_text(ROWS)
    link.symlink_to(rows)
    monkeypatch.setattr(run_batch, "load_any", lambda _: pytest.fail("a model was loaded"))
    for output in (rows, link):
        assert main(["run-batch", "-i", str(rows), "-o", str(output)]) == 2
        assert "are the same file" in capsys.readouterr().err
    assert rows.read_text() == ROWS
