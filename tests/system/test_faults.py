"""A server as a process, and what may befall it: each fault costs what it hit, and the next request is
answered within seconds."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving import hostile
from tests.serving.conftest import data_url, encoded, error_of, image_part, picture
from tests.serving.test_limits import process
from tests.serving.test_routes import numbers

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
RECOVERY_SECONDS = 5.0
"""In which the request after a fault must be answered, where the machine is not busy."""
MEDIA_SECONDS = 1.0
HI = [{"role": "user", "content": "hi"}]
LONG = {"messages": HI, "max_tokens": 1700, "ignore_eos": True, "stream": True}
PHOTO = image_part(encoded(picture(20, 20)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A server's process with a client of it; `others` of its children do not read media. `seconds` are what
    recovery may take."""

    process: psutil.Process
    client: httpx.Client
    folder: Path
    others: frozenset[int]
    seconds: float

    def ask(self, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "hi"}]}]
        return self.client.post(CHAT, json={"messages": messages, "max_tokens": 2, **fields})

    def number(self, name: str) -> float:
        return numbers(self.client)[f'internvl:{name}{{model_name="tiny"}}']

    def check_recovered(self, *parts: dict[str, Any]) -> None:
        start = time.monotonic()
        answer = self.ask(*parts)
        assert answer.status_code == 200, answer.text
        assert time.monotonic() - start < self.seconds
        assert self.client.get("/health").status_code == 200

    def readers(self) -> list[psutil.Process]:
        """The processes that read media."""
        return [one for one in self.process.children() if one.pid not in self.others]

    @contextmanager
    def full_disk(self, num_bytes: int = 100) -> Iterator[None]:
        """No file grows beyond that: what is written is an error of the system, as on a full disk."""
        everyone = [self.process, *self.process.children(recursive=True)]
        limits = [one.rlimit(psutil.RLIMIT_FSIZE) for one in everyone]
        for one, (_, hard) in zip(everyone, limits, strict=True):
            one.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            for one, limit in zip(everyone, limits, strict=True):
                one.rlimit(psutil.RLIMIT_FSIZE, limit)


def wait(is_so: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"still not: {what}"
        time.sleep(0.005)


@contextmanager
def live_server(checkpoint: Path, folder: Path, *words: str) -> Iterator[Live]:
    with process(checkpoint, "--served-model-name", "tiny", "--log-level", "warning", *words) as (
        running,
        url,
    ):
        found = psutil.Process(running.pid)
        headers = {"Authorization": "Bearer key"}
        with httpx.Client(base_url=url.removesuffix("/v1"), headers=headers, timeout=60) as client:
            others = frozenset(one.pid for one in found.children())
            live = Live(process=found, client=client, folder=folder, others=others, seconds=60.0)
            start = time.monotonic()
            live.check_recovered(PHOTO)
            # The first picture starts a process too; on a busy machine that takes as long as it takes.
            yield replace(live, seconds=max(RECOVERY_SECONDS, 4 * (time.monotonic() - start)))


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[int, list[str]]]:
    with hostile.trap() as found:
        yield found


@pytest.fixture(scope="module")
def live(
    checkpoint: Path, web: tuple[int, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("faults")
    words = ["--max-num-seqs", "2", "--max-num-queued-reqs", "1", "--media-timeout", str(MEDIA_SECONDS)]
    words += ["--allowed-media-domains", f"127.0.0.1:{web[0]}", "--allow-private-media-hosts"]
    words += ["--files-path", str(folder / "files"), "--vision-cache-path", str(folder / "vision")]
    with live_server(checkpoint, folder, *words) as found:
        assert found.readers()
        yield found


def test_readers_of_media_are_killed(live: Live, web: tuple[int, list[str]]) -> None:
    """In the middle of one, and while there is nothing to read."""
    port, hits = web
    before = hits.count("/drip")
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(live.ask, image_part(f"http://127.0.0.1:{port}/drip"))
        wait(lambda: hits.count("/drip") > before, "the picture is fetched")
        for one in live.readers():
            one.kill()
        error = error_of(asking.result(), 400)
    assert (error["code"], error["param"]) == ("media_crash", "messages[0].content[0].image_url")
    live.check_recovered(PHOTO)
    for one in live.readers():
        one.kill()
    live.check_recovered(PHOTO)


def test_an_address_that_drips_is_refused_in_its_time(live: Live, web: tuple[int, list[str]]) -> None:
    """And keeps nobody else waiting."""
    live.check_recovered(PHOTO)
    start, before = time.monotonic(), web[1].count("/drip")
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(live.ask, image_part(f"http://127.0.0.1:{web[0]}/drip"))
        wait(lambda: web[1].count("/drip") > before, "the picture is fetched")
        live.check_recovered(PHOTO)
        error = error_of(asking.result(), 400)
    assert error["code"] in ("media_fetch", "media_time")
    assert time.monotonic() - start < MEDIA_SECONDS + RECOVERY_SECONDS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_half_a_picture(live: Live, kind: str) -> None:
    whole = encoded(picture(300, 200), kind)
    half = image_part(data_url(whole[: len(whole) // 2]))
    assert error_of(live.ask(PHOTO, half), 400)["code"] == "invalid_image"
    live.check_recovered(image_part(data_url(whole)))


def test_no_room_for_uploads(live: Live) -> None:
    """A file that cannot be kept leaves nothing behind."""
    files = live.folder / "files"
    before = sorted(files.iterdir())
    with live.full_disk():
        for size in (10, 5000, 3_000_000):  # no room for the description, the content, the upload itself
            answer = upload(live, b"x" * size, "vision")
            assert error_of(answer, 503)["type"] == "server_error"
            assert int(answer.headers["retry-after"]) > 0
        live.check_recovered()
    assert sorted(files.iterdir()) == before
    assert upload(live, b"x" * 3_000_000, "vision").json()["bytes"] == 3_000_000


def upload(live: Live, content: bytes, purpose: str) -> httpx.Response:
    return live.client.post("/v1/files", files={"file": ("a", content)}, data={"purpose": purpose})


def test_no_room_for_vision_tokens(live: Live) -> None:
    """Pictures are answered as before; they are only not kept."""
    known = live.folder / "vision"
    before = set(known.iterdir())
    with live.full_disk():
        live.check_recovered(image_part(encoded(picture(30, 20, seed=5))))
    assert set(known.iterdir()) == before
    live.check_recovered(image_part(encoded(picture(30, 20, seed=6))))
    assert len(set(known.iterdir()) - before) == 1


def test_no_room_for_the_answers_of_a_batch(live: Live) -> None:
    """The batch fails and the next one is answered."""
    body = {"messages": HI, "max_tokens": 2}
    rows = [{"custom_id": str(number), "method": "POST", "url": CHAT, "body": body} for number in range(3)]
    file = upload(live, "\n".join(map(json.dumps, rows)).encode(), "batch").json()
    asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert ended(live, live.client.post("/v1/batches", json=asked))["status"] == "completed"
    with live.full_disk():
        answer = live.client.post("/v1/batches", json=asked)
        assert error_of(answer, 503)["type"] == "server_error"
    with live.full_disk(900):  # enough for the description
        batch = ended(live, live.client.post("/v1/batches", json=asked))
        assert (batch["status"], batch["output_file_id"]) == ("failed", None)
    assert ended(live, live.client.post("/v1/batches", json=asked))["status"] == "completed"


def test_a_batch_outlives_the_engine(live: Live) -> None:
    """Rows that run when the engine's process is killed are asked again."""
    # The engine is forked from a process that waits beside the server.
    (engine,) = [one for pid in live.others for one in psutil.Process(pid).children()]
    body = {"messages": HI, "max_tokens": 1700, "ignore_eos": True}
    rows = [{"custom_id": str(number), "method": "POST", "url": CHAT, "body": body} for number in range(3)]
    file = upload(live, "\n".join(map(json.dumps, rows)).encode(), "batch").json()
    asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    made = live.client.post("/v1/batches", json=asked)
    wait(lambda: live.number("num_requests_running") > 0, "a row runs")
    engine.kill()
    assert ended(live, made)["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


def ended(live: Live, made: httpx.Response) -> dict[str, Any]:
    """The batch when it is over."""
    assert made.status_code == 200, made.text
    batch: dict[str, Any] = made.json()

    def is_over() -> bool:
        batch.update(live.client.get(f"/v1/batches/{batch['id']}").json())
        return batch["status"] != "in_progress"

    wait(is_over, "the batch has ended")
    return batch


def send(live: Live, body: dict[str, Any]) -> socket.socket:
    """A connection on which this was asked and nothing is read."""
    content = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\n"
    )
    connection = socket.create_connection((live.client.base_url.host, live.client.base_url.port))
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def test_a_client_goes_while_its_pictures_are_encoded(live: Live) -> None:
    """The tiles that were not encoded yet are not encoded any more."""
    parts = [image_part(encoded(picture(40, 30, seed)), max_tiles=12) for seed in range(100, 124)]
    before = live.number("vision_tiles_total")
    with send(live, {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}):
        wait(lambda: live.number("vision_tiles_total") > before, "tiles are encoded")
    wait(lambda: not live.number("num_requests_running"), "nothing runs")
    assert live.number("vision_tiles_waiting") == 0
    assert live.number("vision_tiles_total") < before + 24 * 13
    live.check_recovered(PHOTO)


def test_a_client_goes_in_mid_stream(live: Live) -> None:
    with send(live, LONG) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        wait(lambda: live.number("num_requests_running") == 1, "it runs")
    wait(lambda: not live.number("num_requests_running"), "nothing runs")
    assert live.number("kv_cache_usage_perc") == 0
    live.check_recovered()


def test_a_full_queue(live: Live) -> None:
    """Two run, one waits, and one more is sent away; then there is room again."""
    refused = live.number("admission_rejections_total")
    inside = [send(live, LONG) for _ in range(3)]
    wait(lambda: live.number("num_requests_waiting") == 1, "one waits")
    answer = live.ask(PHOTO)
    assert error_of(answer, 429)["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) > 0
    assert live.number("admission_rejections_total") == refused + 1
    for connection in inside:
        connection.close()
    wait(lambda: not live.number("num_requests_running"), "nothing runs")
    live.check_recovered(PHOTO)


def test_an_answer_that_is_too_long_for_the_end_of_the_server_ends_with_an_error(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Streamed or whole; the process ends well, soon after the time for running requests."""
    with (
        live_server(checkpoint, tmp_path, "--shutdown-timeout", "1") as found,
        ThreadPoolExecutor(1) as thread,
    ):
        whole = thread.submit(found.client.post, CHAT, json={**LONG, "n": 16, "stream": False})
        with found.client.stream("POST", CHAT, json={**LONG, "n": 16}) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            names = ("num_requests_running", "num_requests_waiting")
            wait(lambda: sum(map(found.number, names)) == 32, "both are inside")
            found.process.send_signal(signal.SIGTERM)
            *_, last = lines
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert error_of(whole.result(), 503)["type"] == "server_error"
        assert found.process.wait(found.seconds + 10) == 0
