"""Who asks, and how long an answer is of use. Knows no HTTP and no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from internvl.errors import DeadlineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`client` is whose requests share the engine evenly with others': never a key, nor what a request says
    of itself. `deadline` is in seconds of `time.monotonic()`."""

    client: str = ""
    deadline: float | None = None

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Raises DeadlineError when the time is over before the work inside is done."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                yield
        except TimeoutError as reason:
            raise DeadlineError(
                "the request's time was over while its pictures were read and its prompt was written: allow "
                "it more"
            ) from reason


def deadline_of(wanted: float | None, cap: float | None) -> float | None:
    """The moment, on `time.monotonic()`, at which the first of both numbers of seconds is over."""
    seconds = [number for number in (wanted, cap) if number is not None]
    return time.monotonic() + min(seconds) if seconds else None
