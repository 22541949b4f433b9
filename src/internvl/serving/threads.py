"""Work in a thread for requests that may be gone before it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


async def in_thread(work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """What `work` gives, as `asyncio.to_thread`; but whoever is cancelled meanwhile ends after the thread.

    No thread can be stopped: what its request holds, a turn or a place inside, is not free before it ends.
    """
    job = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await _ended(job)
        raise


async def _ended(job: asyncio.Future[Result]) -> None:
    """Waits, however often it is cancelled; nobody asks for the result."""
    while not job.done():
        try:
            await asyncio.wait({job})
        except asyncio.CancelledError:
            continue
    if not job.cancelled():
        job.exception()
