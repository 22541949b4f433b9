"""An engine in a process of its own: its answers, and what happens when it dies, hangs or does not start."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import torch

from internvl.engine.engine import Engine
from internvl.engine.intake import Intake, Language
from internvl.engine.planner import Sizes
from internvl.engine.request import Delta, EngineRequest
from internvl.engine.settings import EngineSettings
from internvl.errors import ContextOverflowError, EngineStoppedError, InputError, WeightsError
from internvl.serving.engine_process import EngineProcess
from tests.engine.tiny import (
    SLOT,
    VLM_CONFIG,
    finish,
    ids_of,
    last_of,
    letters,
    make_engine,
    make_image,
    make_request,
    make_vlm,
)


def make() -> Engine:
    """What the process runs; an id of 20 at the end of a prompt breaks its loop."""
    torch.set_num_threads(1)
    engine = make_engine(make_vlm())
    step = engine.step

    def breakable() -> list[Delta]:
        if any(job.request.ids[-1] == 20 for job in engine.jobs.values()):
            raise RuntimeError("burnt")
        return step()

    engine.step = breakable  # type: ignore[method-assign]
    return engine


def make_once(mark: Path) -> Engine:
    """Starts the first time, not the second, and from then on again."""
    count = len(mark.read_text()) if mark.exists() else 0
    mark.write_text("x" * (count + 1))
    if count == 1:
        raise WeightsError("not now")
    return make()


def refuse() -> Engine:
    raise WeightsError("the tower is missing 3 tensors")


def dawdle() -> Engine:
    time.sleep(600)
    raise AssertionError("it should have been killed")


def die() -> Engine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def plan_with(settings: EngineSettings, sizes: Sizes) -> Intake:
    return Intake(VLM_CONFIG, settings, sizes, Language(decode=letters, slot_id=SLOT), {"": ""}, {"": b""})


@pytest.fixture(scope="module")
def backend() -> Iterator[EngineProcess]:
    with EngineProcess(make, plan_with) as started:
        yield started


def ask(backend: EngineProcess, *requests: EngineRequest) -> list[list[Delta]]:
    """The pieces of each, all asked at once."""

    async def collect(stream: AsyncIterator[Delta]) -> list[Delta]:
        return [delta async for delta in stream]

    async def main() -> list[list[Delta]]:
        return await asyncio.gather(*(collect(backend.stream(request)) for request in requests))

    return asyncio.run(asyncio.wait_for(main(), 300))


def wait_for(is_so: Callable[[], bool], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.01)


def long(key: str) -> EngineRequest:
    return make_request(key, [1], max_new_tokens=250)


def break_in_mid_stream(backend: EngineProcess, do: Callable[[int], None]) -> str:
    """Does it to the process after the first piece; returns how the stream ends."""

    async def main() -> str:
        assert backend.pid is not None
        async with aclosing(backend.stream(long("broken"))) as stream:
            await anext(stream)
            do(backend.pid)
            with pytest.raises(EngineStoppedError) as raised:
                async for _ in stream:
                    pass
            assert not backend.is_alive  # before anybody is told, so that nobody asks the dead one
            return str(raised.value)

    return asyncio.run(asyncio.wait_for(main(), 300))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_answers_are_those_of_an_engine_here(backend: EngineProcess) -> None:
    requests = [
        make_request("a", [1, 2, 3], [make_image(1), make_image(2, 3)], max_new_tokens=6, logprobs=2),
        make_request("b", [4, 5], max_new_tokens=9, n=2, temperature=1.0, seed=1, prompt_logprobs=1),
        make_request("c", [6], max_new_tokens=3, num_beams=2),
    ]
    found = ask(backend, *requests)
    engine = make_engine(make_vlm())
    for request in requests:
        engine.submit(request)
    same = finish(engine)
    for request, deltas in zip(requests, found, strict=True):
        for index in range(request.n):
            assert ids_of(deltas, request.key, index) == ids_of(same, request.key, index)
            last, other = last_of(deltas, request.key, index), last_of(same, request.key, index)
            assert (last.finish_reason, last.usage) == (other.finish_reason, other.usage)
    (first, *_), with_prompt, _ = found
    assert first.token is not None
    assert first.token.logprob is not None
    assert len(first.token.logprob.top) == 2
    assert with_prompt[0].prompt_logprobs is not None or with_prompt[1].prompt_logprobs is not None


def test_signals_are_for_the_server(backend: EngineProcess) -> None:
    pid = backend.pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    (deltas,) = ask(backend, make_request("a", [7], max_new_tokens=2))
    assert len(deltas) == 2
    assert backend.pid == pid


def test_refusals_come_back_with_their_type(backend: EngineProcess) -> None:
    with pytest.raises(ContextOverflowError, match="999"):
        backend.plan(make_request("a", [1], max_new_tokens=999))
    assert backend.plan(make_request("a", [1], max_new_tokens=3)).pages == 1
    with pytest.raises(ContextOverflowError, match="999"):
        ask(backend, make_request("a", [1], max_new_tokens=999))
    with pytest.raises(InputError, match="there already"):
        ask(backend, long("a"), long("a"))
    wait_for(lambda: not backend.stats().running)


def test_leaving_a_stream_cancels_its_request(backend: EngineProcess) -> None:
    before = backend.stats().new_tokens

    async def main() -> None:
        async with aclosing(backend.stream(long("a"))) as stream:
            await anext(stream)
        wait_for(lambda: backend.stats().new_tokens > before and not backend.stats().running)

    asyncio.run(main())
    assert backend.stats().new_tokens < before + 250
    assert backend.stats().pages_used == 0


def test_a_killed_engine_is_started_again(backend: EngineProcess) -> None:
    request = make_request("killed", [1, 2, 3], [make_image(1)], max_new_tokens=6)
    (before,) = ask(backend, request)
    num_restarts = backend.num_restarts
    assert "SIGKILL" in break_in_mid_stream(backend, kill)
    for refused in (lambda: backend.plan(request), lambda: ask(backend, request)):
        with pytest.raises(EngineStoppedError, match=r"is started again: killed by SIGKILL"):
            refused()
    assert "SIGKILL" in str(backend.failure)
    assert backend.stats().running == 0
    wait_for(lambda: backend.is_alive)
    assert backend.num_restarts == num_restarts + 1
    assert backend.failure is None
    assert ids_of(ask(backend, request)[0], "killed") == ids_of(before, "killed")


def test_another_engine_does_not_draw_the_same_again() -> None:
    found = []
    with EngineProcess(make, plan_with) as backend:
        for _ in range(2):
            wait_for(lambda: backend.is_alive)
            request = make_request("a", [1], max_new_tokens=40, temperature=100.0)
            found.append(ids_of(ask(backend, request)[0], "a"))
            break_in_mid_stream(backend, kill)
    assert found[0] != found[1]


def test_a_loop_that_fails_is_started_again(backend: EngineProcess) -> None:
    async def main() -> None:
        async with aclosing(backend.stream(long("beside"))) as stream:
            await anext(stream)
            with pytest.raises(EngineStoppedError, match="exit status 1"):
                await anext(backend.stream(make_request("burns", [20], max_new_tokens=2)))
            with pytest.raises(EngineStoppedError, match="before the answer had ended"):
                async for _ in stream:
                    pass

    asyncio.run(asyncio.wait_for(main(), 300))
    wait_for(lambda: backend.is_alive)
    assert len(ask(backend, make_request("after", [7], max_new_tokens=2))[0]) == 2


@pytest.mark.slow
def test_an_engine_that_stands_still_is_replaced() -> None:
    with EngineProcess(make, plan_with, stall_seconds=5) as backend:
        told = break_in_mid_stream(backend, lambda pid: os.kill(pid, signal.SIGSTOP))
        assert "a step took more than 5 s" in told
        wait_for(lambda: backend.is_alive)
        assert len(ask(backend, make_request("a", [7], max_new_tokens=2))[0]) == 2


@pytest.mark.slow
def test_a_start_that_fails_later_is_tried_again(tmp_path: Path) -> None:
    with EngineProcess(partial(make_once, tmp_path / "starts"), plan_with) as backend:
        break_in_mid_stream(backend, kill)
        wait_for(lambda: backend.is_alive)
        assert backend.num_restarts == 2


def test_a_first_start_that_fails_says_why() -> None:
    with (
        pytest.raises(WeightsError, match="the tower is missing 3 tensors"),
        EngineProcess(refuse, plan_with),
    ):
        pass


def test_a_first_start_that_dies_says_how() -> None:
    with (
        pytest.raises(EngineStoppedError, match="before it was ready: killed by SIGKILL"),
        EngineProcess(die, plan_with),
    ):
        pass


def test_loading_that_hangs_is_ended() -> None:
    with (
        pytest.raises(EngineStoppedError, match=r"before it was ready: loading took more than 0\.5 s"),
        EngineProcess(dawdle, plan_with, load_seconds=0.5),
    ):
        pass


SCRIPT = """
import time
from internvl.serving.engine_process import EngineProcess
from tests.serving.test_engine_process import make, plan_with

if __name__ == "__main__":
    with EngineProcess(make, plan_with) as backend:
        print(backend.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_no_engine_outlives_its_server(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    wait_for(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Whether there is such a process that is more than a status nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
