"""The engine for asyncio: streams of deltas out of one thread that steps.

    async with AsyncEngine(engine) as front:
        async for delta in front.stream(request): ...

Leaving the loop early, or cancelling the task, cancels the request. The thread is the only one that changes
the engine; what it is to do is handed over in a queue. When it fails, all streams raise, and `is_alive` is
False.
Knows no scheduling and no model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Lock
from types import TracebackType

from internvl.engine.engine import Engine
from internvl.engine.listener import Listener, follow
from internvl.engine.planner import Plan
from internvl.engine.request import Delta, EngineRequest
from internvl.engine.settings import EngineStats
from internvl.errors import EngineStoppedError, InternVLError

IDLE_SECONDS = 0.5
"""An engine without work looks this often whether it is alive, for `last_step_age`."""


class AsyncEngine:
    """`async with` starts and ends the thread; what is unfinished at the end is cancelled. A thread that has
    failed is not started again."""

    num_restarts = 0
    comes_back = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._listeners: dict[str, Listener] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running: Future[None] | None = None
        self._is_ending = False
        self._is_closed = False
        self._lock = Lock()
        self._last_step = time.monotonic()

    async def __aenter__(self) -> AsyncEngine:
        if self._running is not None:
            raise EngineStoppedError("an AsyncEngine is entered once: make another one")
        await asyncio.to_thread(self._engine.warm_up)
        self._running = self._thread.submit(self._loop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        await asyncio.to_thread(self._thread.shutdown)

    def stop(self) -> None:
        """The thread ends after its step; what is unfinished then raises EngineStoppedError."""
        self._is_ending = True
        self._orders.put(lambda: None)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._running is not None and not self._running.done()

    @property
    def last_step_age(self) -> float:
        """Seconds since the thread was last seen at work, or looking for some."""
        return time.monotonic() - self._last_step

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, if it failed."""
        return self._running.exception() if self._running is not None and self._running.done() else None

    def plan(self, request: EngineRequest) -> Plan:
        """As `Engine.plan`."""
        return self._engine.plan(request)

    def stats(self) -> EngineStats:
        """As `Engine.stats`; the numbers may be those of different moments of one step."""
        return self._engine.stats()

    def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """The pieces of all answers of a request, as they come.

        Raises what `Engine.submit` raises, before the first piece; EngineStoppedError when the engine is not
        running, or stops before the answers have ended.
        """
        return follow(
            request.n,
            lambda listener: self._order(lambda: self._submit(request, listener)),
            lambda: self._orders.put(lambda: self._cancel(request.key)),
        )

    def _order(self, order: Callable[[], None]) -> None:
        with self._lock:
            if self._running is None or self._is_closed:
                raise EngineStoppedError("the engine is not running")
            self._orders.put(order)

    def _loop(self) -> None:
        """What the thread does: orders, then a step, until it is told to end."""
        try:
            while not self._is_ending:
                self._last_step = time.monotonic()
                self._obey(waits=not self._engine.has_work)
                if self._engine.has_work:
                    self._deliver(self._engine.step())
        finally:
            with self._lock:
                self._is_closed = True
            self._obey(waits=False)
            for listener in self._listeners.values():
                listener.put(EngineStoppedError("the engine has stopped before the answer had ended"))

    def _obey(self, *, waits: bool) -> None:
        try:
            order = self._orders.get(waits, IDLE_SECONDS)
            while True:
                order()
                order = self._orders.get(block=False)
        except Empty:
            return

    def _submit(self, request: EngineRequest, listener: Listener) -> None:
        try:
            self._engine.submit(request)
        except InternVLError as error:
            listener.put(error)
        else:
            self._listeners[request.key] = listener

    def _cancel(self, key: str) -> None:
        """Nobody listens any more."""
        if self._listeners.pop(key, None):
            self._engine.cancel(key)

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            if listener := self._listeners.get(delta.key):
                listener.put(delta)
        for key in {delta.key for delta in deltas if delta.finish_reason}:
            if not self._engine.holds(key):
                self._listeners.pop(key, None)
