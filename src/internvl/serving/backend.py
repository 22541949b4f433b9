"""What the server asks of whatever computes answers: an `EngineProcess`, or an `AsyncEngine` in this one.

Knows the engine's values; no HTTP, no messages and no files.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from internvl.engine.planner import Plan
from internvl.engine.request import Delta, EngineRequest
from internvl.engine.settings import EngineStats


class Backend(Protocol):
    """Answers requests, any number at once. Closing the iterator of `stream` cancels its request.

    `failure` is why it is not alive. While it is not, `plan` and `stream` may raise EngineStoppedError;
    `comes_back` says whether it will be alive again.
    """

    @property
    def is_alive(self) -> bool: ...
    @property
    def comes_back(self) -> bool: ...
    @property
    def last_step_age(self) -> float: ...
    @property
    def failure(self) -> BaseException | None: ...
    @property
    def num_restarts(self) -> int: ...
    def plan(self, request: EngineRequest) -> Plan: ...
    def stop(self) -> None: ...
    def stats(self) -> EngineStats: ...
    def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]: ...
