"""An engine in a process of its own, which is started again when it dies or stands still.

    with EngineProcess(make, plan_with) as backend:
        async for delta in backend.stream(request): ...

One thread here starts the process, hears what it says and takes care of its end; what it is told is written
by another, since a pipe may be full. Requests in flight at its end fail, new ones are refused until it is
there again. Knows no HTTP and no model.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event, Lock, Thread

from internvl.engine.engine import Engine
from internvl.engine.intake import Intake
from internvl.engine.listener import Listener, follow
from internvl.engine.planner import Plan, Sizes
from internvl.engine.request import Delta, EngineRequest
from internvl.engine.settings import EngineSettings, EngineStats
from internvl.errors import EngineStoppedError, InputError
from internvl.serving.engine_messages import Message, News, NotStarted, Order, Ready, pack, send_parts
from internvl.serving.engine_worker import serve

FIRST_DELAY, MAX_DELAY = 1.0, 60.0
"""Seconds before another start when one has failed; they double. An engine that did start is replaced at
once."""
WATCH_SECONDS = 0.2
"""How often is looked whether the engine stands still, or is to end."""
EXIT_SECONDS = 1.0
"""Time between a closed pipe and the end of the process that closed it, so that its status is known."""

IMPORTS = ("internvl.api.engine", "internvl.serving.engine_worker")
"""Imported by a process that waits beside the engine: the next engine is forked from it, seconds sooner."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """One process, the pipe to it, and the thread that writes into that."""

    process: BaseProcess
    connection: Connection
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @classmethod
    def start(cls, make: Callable[[], Engine]) -> Child:
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        context = (
            multiprocessing.get_context("forkserver") if can_fork else multiprocessing.get_context("spawn")
        )
        context.set_forkserver_preload(list(IMPORTS))
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, make), name="internvl-engine", daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def tell(self, order: Order) -> None:
        """Returns at once."""
        self.writer.submit(_write, self.connection, pack(order))

    def ending(self) -> str:
        """How it ended, if its pipe is closed."""
        self.process.join(EXIT_SECONDS)
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.writer.shutdown()
        self.connection.close()


class EngineProcess:
    """`with` starts it and waits until it is ready; at the end it is killed.

    `make` makes the engine, over there: it must be picklable. `plan_with` makes what plans for an engine of
    such settings and sizes, here. A step of more than `stall_seconds`, or loading of more than
    `load_seconds`, counts as the process's end.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        plan_with: Callable[[EngineSettings, Sizes], Intake],
        *,
        stall_seconds: float = 300.0,
        load_seconds: float = 3600.0,
    ) -> None:
        self._make, self._plan_with = make, plan_with
        self._stall_seconds, self._load_seconds = stall_seconds, load_seconds
        self._child: Child | None = None
        self._intake: Intake | None = None
        self._stats: EngineStats | None = None
        self._last_news = time.monotonic()
        self._reason = "it was not started"
        self._refusal: Exception | None = None
        self._listeners: dict[str, Listener] = {}
        self._lock = Lock()
        self._is_settled, self._is_closing = Event(), Event()
        self._thread = Thread(target=self._supervise, name="engine-process", daemon=True)
        self.num_restarts = 0

    def __enter__(self) -> EngineProcess:
        """Raises what kept the engine from starting; EngineStoppedError if its process just died."""
        self._thread.start()
        try:
            self._is_settled.wait()
        except BaseException:
            self.__exit__()
            raise
        if self._intake is None:
            raise self._refusal or EngineStoppedError(
                f"the engine's process ended before it was ready: {self._reason}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """The process is ended, for good; what is unfinished then raises EngineStoppedError."""
        self._is_closing.set()

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that takes requests."""
        return self._child is not None

    @property
    def comes_back(self) -> bool:
        """Whether a process that ends is followed by another."""
        return not self._is_closing.is_set()

    @property
    def last_step_age(self) -> float:
        """Seconds since it was last heard of."""
        return time.monotonic() - self._last_news

    @property
    def failure(self) -> EngineStoppedError | None:
        """Why the last process ended, while there is no other."""
        if self.is_alive:
            return None
        return EngineStoppedError(f"the engine has stopped and is started again: {self._reason}")

    @property
    def pid(self) -> int | None:
        """The process that takes requests."""
        return self._child.process.pid if self._child is not None else None

    def plan(self, request: EngineRequest) -> Plan:
        """As `Engine.plan`. Raises EngineStoppedError while there is no engine."""
        if self._intake is None or self.failure:
            raise self.failure or EngineStoppedError("there is no engine yet")
        return self._intake.plan(request)

    def stats(self) -> EngineStats:
        """What it said last; sums begin anew with a new process."""
        if self._stats is None:
            raise EngineStoppedError("there is no engine yet")
        return self._stats

    def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """The pieces of all answers of a request, as they come.

        Raises what `Engine.submit` raises, before the first piece; EngineStoppedError when there is no
        engine, or its process ends before the answers have.
        """
        return follow(
            request.n,
            lambda listener: self._submit(request, listener),
            lambda: self._cancel(request.key),
        )

    def _submit(self, request: EngineRequest, listener: Listener) -> None:
        with self._lock:
            if self._child is None:
                raise self.failure or EngineStoppedError("there is no engine")
            if request.key in self._listeners:
                raise InputError(f"a request {request.key!r} is there already: keys must be unique")
            self._child.tell(request)
            self._listeners[request.key] = listener

    def _cancel(self, key: str) -> None:
        """Nobody listens any more."""
        with self._lock:
            if self._listeners.pop(key, None) and self._child is not None:
                self._child.tell(key)

    def _supervise(self) -> None:
        """What the thread does: one process after the other, until it is to end."""
        delay = 0.0
        try:
            while not self._is_closing.wait(delay):
                was_ready = self._run()
                if not self._is_settled.is_set() or self._is_closing.is_set():
                    return
                delay = 0.0 if was_ready else min(max(FIRST_DELAY, 2 * delay), MAX_DELAY)
                _log.error(
                    "%s%s (in %g s)", self.failure, f": {self._refusal}" if self._refusal else "", delay
                )
                self.num_restarts += 1
        finally:
            self._is_settled.set()

    def _run(self) -> bool:
        """One process from its start to its end. Returns whether it was ready in between."""
        self._refusal, self._last_news = None, time.monotonic()
        try:
            child = Child.start(self._make)
        except OSError as error:
            self._reason = str(error)
            return False
        try:
            self._reason = self._attend(child) or child.ending()
        finally:
            was_ready = self._lose()
            child.close()
        return was_ready

    def _attend(self, child: Child) -> str | None:
        """Hears what it says until it is gone; or returns why it should be."""
        with suppress(EOFError, OSError):
            while not self._is_closing.is_set():
                if child.connection.poll(WATCH_SECONDS):
                    self._hear(child, child.connection.recv())
                elif self.is_alive and self.last_step_age > self._stall_seconds:
                    return f"a step took more than {self._stall_seconds:g} s"
                elif not self.is_alive and self.last_step_age > self._load_seconds:
                    return f"loading took more than {self._load_seconds:g} s"
            return "the server ends"
        return None

    def _hear(self, child: Child, message: Message) -> None:
        self._last_news = time.monotonic()
        if isinstance(message, NotStarted):
            self._refusal = message.error
            return
        self._stats = message.stats
        if isinstance(message, Ready):
            self._intake = self._intake or self._plan_with(message.settings, message.sizes)
            self._child = child
            self._is_settled.set()
            if self.num_restarts:
                _log.warning("the engine is ready again")
        else:
            self._deliver(message)

    def _deliver(self, news: News) -> None:
        with self._lock:
            for key, error in news.refusals.items():
                if listener := self._listeners.pop(key, None):
                    listener.put(error)
            for delta in news.deltas:
                if listener := self._listeners.get(delta.key):
                    listener.put(delta)
                if delta.usage is not None:  # the last piece of all answers
                    self._listeners.pop(delta.key, None)

    def _lose(self) -> bool:
        """There is no process any more: nobody gets an answer. Returns whether there was one."""
        with self._lock:
            was_ready, self._child = self.is_alive, None
            listeners, self._listeners = self._listeners, {}
        if self._stats is not None:
            self._stats = replace(
                self._stats, running=0, waiting=0, pages_used=0, pages_idle=0, tiles_waiting=0
            )
        for listener in listeners.values():
            error = f"the engine has stopped before the answer had ended ({self._reason}): send it again"
            listener.put(EngineStoppedError(error))
        return was_ready


def _write(connection: Connection, parts: Sequence[bytes | memoryview]) -> None:
    with suppress(OSError):  # gone, which the other thread notices
        send_parts(connection, parts)
