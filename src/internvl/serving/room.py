"""Room that requests share: each waits until there is as much as it may need at most.

In order of coming, so that no large one waits for ever. Numbers only; used from one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Shrink = Callable[[int], None]
"""Told how much of a share is needed after all; the rest is free for others."""


class Room:
    """Room for `size` of whatever is counted."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def share(self, most: int) -> AsyncIterator[Shrink]:
        """A share of `most`, taken at once and held within the block: who holds one never waits for more, so
        that no two wait for each other."""
        assert most <= self.size, f"a share of {most} never fits a room of {self.size}"
        held = 0

        def shrink(size: int) -> None:
            nonlocal held
            self.free += held - size
            held = size
            self._freed.set()

        async with self._turn:
            while self.free < most:
                self._freed.clear()
                await self._freed.wait()
            shrink(most)
        try:
            yield shrink
        finally:
            shrink(0)
