"""The processes that read media: killed, late or lying, they cost one medium and no more."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from internvl.errors import EngineError, RequestError
from internvl.serving import decoders as module
from internvl.serving.decoders import Decoders, Worker
from internvl.serving.media import MediaPolicy, Medium
from internvl.serving.refusals import status_of
from tests.serving import hostile
from tests.serving.conftest import encoded, picture

PHOTO = Medium(kind="image", content=encoded(picture(20, 10)), param="p")


def run(
    test: Callable[[Decoders], Awaitable[None]], *, max_pixels_inside: int = 480_000_000, **limits: Any
) -> None:
    async def opened() -> None:
        policy = MediaPolicy(**limits)
        async with Decoders(policy, num_workers=1, max_pixels_inside=max_pixels_inside) as decoders:
            await test(decoders)

    asyncio.run(opened())


def worker_of(decoders: Decoders) -> Worker:
    worker = decoders._idle.get_nowait()
    decoders._idle.put_nowait(worker)
    assert worker is not None
    return worker


def test_pixels_are_those_of_the_file() -> None:
    async def test(decoders: Decoders) -> None:
        (found,) = await decoders.read(PHOTO)
        assert found.tobytes() == picture(20, 10).tobytes()
        palette = replace(PHOTO, content=encoded(picture(20, 10).convert("P"), "GIF"))
        (found,) = await decoders.read(palette)
        assert (found.mode, found.size) == ("RGB", (20, 10))

    run(test)


def test_a_process_that_was_killed_is_replaced() -> None:
    async def test(decoders: Decoders) -> None:
        await decoders.read(PHOTO)
        first = worker_of(decoders).process
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        first.join(30)
        assert len(await decoders.read(PHOTO)) == 1
        assert worker_of(decoders).process.pid != first.pid

    run(test)


def test_a_process_that_dies_over_a_medium_fails_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(decoders: Decoders) -> None:
        await decoders.read(PHOTO)
        worker = worker_of(decoders)

        def die(*_: object) -> list[Image.Image]:
            worker.process.kill()
            worker.connection.recv_bytes()
            raise AssertionError

        with monkeypatch.context() as patch:
            patch.setattr(Worker, "run", die)
            with pytest.raises(RequestError) as caught:
                await decoders.read(PHOTO)
        assert (caught.value.code, caught.value.param) == ("media_crash", "p")
        assert len(await decoders.read(PHOTO)) == 1

    run(test)


@pytest.mark.parametrize("failure", [OSError(11, "no process more"), MemoryError()])
@pytest.mark.parametrize("what", ["process", "clock"])
def test_a_process_that_cannot_be_started_costs_one_request(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, what: str
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    async def test(decoders: Decoders) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(*((Worker, "start") if what == "process" else (module.Timer, "start")), fail)
            for _ in range(3):
                with pytest.raises(EngineError, match="send the request again") as caught:
                    await asyncio.wait_for(decoders.read(PHOTO), 60)
                assert status_of(caught.value) == 503
        assert len(await decoders.read(PHOTO)) == 1

    run(test)


def test_whatever_befalls_a_job_there_is_a_place_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    async def test(decoders: Decoders) -> None:
        await decoders.read(PHOTO)
        before = worker_of(decoders).process.pid
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "run", fail)
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(decoders.read(PHOTO), 60)
        assert len(await asyncio.wait_for(decoders.read(PHOTO), 60)) == 1
        assert worker_of(decoders).process.pid != before

    run(test)


def test_what_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address answers so slowly that the process would still wait when its time is over."""
    monkeypatch.setattr(module, "GRACE", -0.9)

    async def test(decoders: Decoders) -> None:
        await decoders.read(PHOTO)
        with hostile.trap() as (port, _):
            policy = replace(
                decoders.policy, allowed_domains=(f"127.0.0.1:{port}",), allow_private_hosts=True
            )
            decoders.policy = replace(policy, seconds=1.0)
            with pytest.raises(RequestError) as caught:
                await decoders.read(Medium(kind="image", url=f"http://127.0.0.1:{port}/drip"))
        assert caught.value.code == "media_time"
        decoders.policy = replace(policy, seconds=30.0)
        assert len(await decoders.read(PHOTO)) == 1

    run(test)


def test_a_request_that_is_gone_leaves_no_half_answer() -> None:
    async def test(decoders: Decoders) -> None:
        other = replace(PHOTO, content=encoded(picture(1500, 1500)))
        reading = asyncio.ensure_future(decoders.read(other))
        await asyncio.sleep(0.01)
        reading.cancel()
        (found,) = await decoders.read(PHOTO)
        assert found.size == (20, 10)

    run(test)


async def count(decoders: Decoders, media: Sequence[Medium]) -> int:
    async with decoders.read_all(media) as found:
        return len(found)


def test_limits_of_a_whole_request() -> None:
    async def test(decoders: Decoders) -> None:
        with pytest.raises(RequestError) as caught:
            await count(decoders, [PHOTO] * 4)
        assert caught.value.code == "media_count"
        with pytest.raises(RequestError) as caught:
            await count(decoders, [PHOTO] * 3)
        assert caught.value.code == "media_pixels"
        assert await count(decoders, [PHOTO] * 2) == 2

    run(test, max_media=3, max_total_pixels=400)


def test_pictures_of_all_requests_share_the_memory() -> None:
    """Each photo has 200 pixels and might have 250, so there is room to read a third while two are held."""

    async def test(decoders: Decoders) -> None:
        num_inside = most = 0
        three = asyncio.Event()

        async def request() -> None:
            nonlocal num_inside, most
            async with decoders.read_all([PHOTO]):
                num_inside += 1
                most = max(most, num_inside)
                if num_inside == 3:
                    three.set()
                await three.wait()
                assert await count(decoders, []) == 0  # text waits for nobody
                await asyncio.sleep(0.02)  # a fourth could come
                num_inside -= 1

        await asyncio.wait_for(asyncio.gather(*[request() for _ in range(9)]), 60)
        assert most == 3

    run(test, max_pixels=250, max_total_pixels=400, max_pixels_inside=650)


def test_room_of_requests_that_fail_or_are_gone_is_free_again() -> None:
    async def test(decoders: Decoders) -> None:
        async with decoders.read_all([PHOTO]):
            waiting = asyncio.ensure_future(count(decoders, [PHOTO] * 2))
            behind = asyncio.ensure_future(count(decoders, [PHOTO]))
            await asyncio.sleep(0.02)
            assert not behind.done()  # it came later
            waiting.cancel()
            assert await asyncio.wait_for(behind, 60) == 1
        for _ in range(3):
            with pytest.raises(RequestError):
                await asyncio.wait_for(count(decoders, [replace(PHOTO, content=b"junk")]), 60)
        assert await asyncio.wait_for(count(decoders, [PHOTO] * 2), 60) == 2

    run(test, max_pixels=200, max_total_pixels=400, max_pixels_inside=400)


@pytest.mark.parametrize(
    ("entry", "host", "port", "is_allowed"),
    [
        ("a.example", "a.example", 443, True), ("a.example", "a.example", 80, True),
        ("a.example", "a.example", 8080, False), ("a.example:8080", "a.example", 8080, True),
        ("a.example:8080", "a.example", 80, False), ("A.Example", "a.example", 80, True),
        ("a.example", "b.a.example", 80, False), (".a.example", "b.a.example", 80, True),
        (".a.example", "a.example", 80, False), (".a.example", "evila.example", 80, False),
        ("*", "anything", 443, True), ("*", "anything", 22, False), ("*:22", "anything", 22, True),
        ("10.0.0.1", "10.0.0.1", 80, True), ("[2001:db8::1]", "2001:db8::1", 80, True),
        ("[2001:db8::1]:81", "2001:db8::1", 81, True), ("10.0.0.1:81", "10.0.0.1", 81, True),
    ],
)  # fmt: skip
def test_hosts_that_may_be_asked(entry: str, host: str, port: int, is_allowed: bool) -> None:
    assert MediaPolicy(allowed_domains=(entry,)).allows(host, port) == is_allowed
