"""What the server asks of whatever computes answers: an `AsyncEngine`, or in tests something that speaks.

Knows the engine's values; no HTTP, no messages and no files.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from internvl.engine.planner import Plan
from internvl.engine.request import Delta, EngineRequest
from internvl.engine.settings import EngineStats


class Backend(Protocol):
    """Answers requests, any number at once. Closing the iterator of `stream` cancels its request."""

    @property
    def is_alive(self) -> bool: ...
    @property
    def last_step_age(self) -> float: ...
    def plan(self, request: EngineRequest) -> Plan: ...
    def stop(self) -> None: ...
    def stats(self) -> EngineStats: ...
    def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]: ...
