"""A stream's own end of the engine: pieces come from any thread, one task reads them.

Knows what an engine gives; nothing of how it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from internvl.engine.request import Delta
from internvl.errors import InternVLError

Item = Delta | InternVLError


class Listener:
    """What comes for one request, until somebody reads it. Made in the event loop that reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()

    def put(self, item: Item) -> None:
        """From any thread. Once the loop is closed nobody listens."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def get(self) -> Item:
        return await self._items.get()


async def follow(
    num_answers: int, begin: Callable[[Listener], None], leave: Callable[[], None]
) -> AsyncGenerator[Delta, None]:
    """The pieces that `begin` makes come to its listener, until so many answers have ended.

    An error among them is raised. Whoever closes the iterator before calls `leave` by it.
    """
    listener = Listener()
    begin(listener)
    num_ended = 0
    try:
        while num_ended < num_answers:
            item = await listener.get()
            if isinstance(item, InternVLError):
                num_ended = num_answers
                raise item
            num_ended += item.finish_reason is not None
            yield item
    finally:
        if num_ended < num_answers:
            leave()
