"""A few processes that read media, and the clock that kills the one that takes too long.

A job gets a process of its own until it is done; a process that died or was killed is replaced before the
next job. Knows nothing of what is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event, Timer
from typing import Any

from PIL import Image

from internvl.errors import EngineError, RequestError
from internvl.serving.decoding import Failure, serve, write_job
from internvl.serving.media import MediaPolicy, Medium
from internvl.serving.room import Room

GRACE = 2.0
"""Seconds beyond the policy's own, in which a fetch can still say that its time was over."""
START_SECONDS = 60.0
"""A new process imports its decoders on its first job."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Worker:
    """One process and the pipe to it."""

    process: BaseProcess
    connection: Connection
    is_fresh: bool = True

    @classmethod
    def start(cls) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs,), name="internvl-media", daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours)

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()

    def run(self, medium: Medium, policy: MediaPolicy) -> list[Image.Image] | Failure:
        """The pictures, or why there are none. Raises OSError or EOFError if the process died on the way."""
        head, content = write_job(medium, policy)
        self.connection.send_bytes(head)
        self.connection.send_bytes(content)
        answer = json.loads(self.connection.recv_bytes())
        self.is_fresh = False
        if "sizes" not in answer:
            return Failure(str(answer["message"]), str(answer["code"]), int(answer["status"]))
        pictures = []
        for width, height in answer["sizes"]:
            pictures.append(Image.frombytes("RGB", (width, height), self.connection.recv_bytes()))
        return pictures


class Decoders:
    """`async with Decoders(policy, ...) as decoders: await decoders.read(medium)`.

    `max_pixels_inside` are those of all requests together, at least the policy's own for one.
    """

    def __init__(self, policy: MediaPolicy, *, num_workers: int, max_pixels_inside: int) -> None:
        self.policy, self.num_workers = policy, num_workers
        self._room = Room(max_pixels_inside)
        self._idle: asyncio.Queue[Worker | None] = asyncio.Queue()

    async def __aenter__(self) -> Decoders:
        for _ in range(self.num_workers):
            self._idle.put_nowait(None)
        return self

    async def __aexit__(self, *reason: object) -> None:
        """Waits for the jobs that still run; each has its time."""
        for _ in range(self.num_workers):
            worker = await self._idle.get()
            if worker is not None:
                await asyncio.to_thread(worker.close)

    @asynccontextmanager
    async def read_all(self, media: Sequence[Medium]) -> AsyncIterator[list[list[Image.Image]]]:
        """The pictures of every medium, which are to be let go with the block: other requests wait for their
        room. Raises RequestError for the first that is refused."""
        if len(media) > self.policy.max_media:
            raise RequestError(
                f"{len(media)} pictures, videos and documents in one request, the limit is "
                f"{self.policy.max_media}",
                param=media[-1].param,
                code="media_count",
            )
        if not media:
            yield []  # text waits for nobody's pictures
            return
        async with self._room.share(self._most_pixels(media)) as shrink:
            found, num_pixels = await self._read_each(media)
            shrink(num_pixels)
            yield found

    def _most_pixels(self, media: Sequence[Medium]) -> int:
        """What these may have, as far as that is known before they are read."""
        policy = self.policy
        of_each = (policy.max_pixels if one.kind == "image" else policy.max_total_pixels for one in media)
        return min(sum(of_each), policy.max_total_pixels)

    async def _read_each(self, media: Sequence[Medium]) -> tuple[list[list[Image.Image]], int]:
        """The pictures of every medium, and the pixels of all."""
        found: list[list[Image.Image]] = []
        num_pixels = 0
        for medium in media:
            found.append(await self.read(medium))
            num_pixels += sum(picture.width * picture.height for picture in found[-1])
            if num_pixels > self.policy.max_total_pixels:
                raise RequestError(
                    f"{len(found)} media of the request have {num_pixels} pixels, the limit is "
                    f"{self.policy.max_total_pixels} for all of them",
                    param=medium.param,
                    code="media_pixels",
                )
        return found, num_pixels

    async def read(self, medium: Medium) -> list[Image.Image]:
        """The RGB pictures of one medium. Raises RequestError when it is refused, and EngineError where the
        machine has no room for a process that reads it."""
        worker = await self._idle.get()
        job = asyncio.ensure_future(asyncio.to_thread(self._run, worker, medium))
        job.add_done_callback(partial(self._take_back, worker))
        # The job goes on when the request is gone: its process must not be left in the middle of an answer.
        _, outcome = await asyncio.shield(job)
        if isinstance(outcome, Failure):
            raise outcome.as_error(medium.param)
        return outcome

    def _take_back(self, worker: Worker | None, job: asyncio.Future[tuple[Worker | None, Any]]) -> None:
        """There is a worker again however its job has ended; one that is dead is replaced before the next."""
        has_failed = job.cancelled() or job.exception() is not None
        self._idle.put_nowait(worker if has_failed else job.result()[0])

    def _run(
        self, worker: Worker | None, medium: Medium
    ) -> tuple[Worker | None, list[Image.Image] | Failure]:
        """The worker to be used next (None: a new one), and what came of the job. Raises EngineError."""
        worker, timer, is_late = self._begin(worker)
        try:
            outcome = worker.run(medium, self.policy)
            if not is_late.is_set():
                return worker, outcome
        except (OSError, EOFError, LookupError, TypeError, ValueError):
            # Gone, or it answers nonsense: either way it is not used again.
            if not is_late.is_set():
                worker.close()
                return None, Failure("the decoder broke down over it: the medium is damaged", "media_crash")
        except BaseException:
            worker.close()
            raise
        finally:
            timer.cancel()
        worker.close()
        return None, Failure(f"reading it took more than {self.policy.seconds:g} s", "media_time")

    def _begin(self, worker: Worker | None) -> tuple[Worker, Timer, Event]:
        """A process that is alive, and the clock that kills it and says so. Raises EngineError."""
        is_late = Event()

        def stop(process: BaseProcess) -> None:
            is_late.set()
            process.kill()

        if worker is not None and not worker.process.is_alive():
            worker.close()
            worker = None
        try:
            worker = worker or Worker.start()
            seconds = self.policy.seconds + GRACE + (START_SECONDS if worker.is_fresh else 0)
            timer = Timer(seconds, stop, [worker.process])
            timer.start()
        except (OSError, MemoryError, RuntimeError) as reason:  # there are too many processes or threads
            if worker is not None:
                worker.close()
            _log.exception("no process that reads media could be started")
            raise EngineError("there is no room to read media now: send the request again") from reason
        return worker, timer, is_late
