"""A backend over `generation`: one thread that gives each live request a step in turn.

Requests share the model and its vision cache and nothing else, so each answer is the one it gets alone.
Knows no HTTP and no messages. Shape letters: T tokens, D width, S slots.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Condition, Thread

import torch
from torch import Tensor

from internvl.api.chat import ChatModel
from internvl.config import GROUNDING_TOKENS, IMG_CONTEXT
from internvl.errors import EngineError, InputError, InternVLError
from internvl.generation.generate import Batch
from internvl.generation.prompt import Prompt, check_prompt
from internvl.generation.sampling import Sampling
from internvl.serving.backend import Delta, EngineRequest, EngineStats, EngineUsage


class Job:
    """A request while it runs. `send` takes its deltas; called in the thread that computes."""

    def __init__(self, request: EngineRequest, num_slots: int, send: Callable[[Delta], None]) -> None:
        self.request, self.num_slots, self.send = request, num_slots, send
        self.is_cancelled = False
        self.batch: Batch | None = None
        self.num_new = 0

    @property
    def is_over(self) -> bool:
        return self.is_cancelled or (self.batch is not None and not self.batch.live)

    def step(self, prepare: Callable[[EngineRequest], Batch]) -> None:
        """One token for each of its answers; the first step also runs the pictures and the prompt."""
        if self.batch is None:
            self.batch = prepare(self.request)
        tokens = self.batch.step()
        self.num_new += len(tokens)
        for token in tokens:
            is_last = not self.batch.live and token is tokens[-1]
            self.send(
                Delta(
                    key=self.request.key,
                    index=token.sequence,
                    token=token,
                    text=token.text,
                    finish_reason=token.finish_reason,
                    usage=self._usage() if is_last else None,
                )
            )

    def fail(self, error: InternVLError) -> None:
        self.is_cancelled = True
        self.send(Delta(key=self.request.key, error=error))

    def _usage(self) -> EngineUsage:
        request = self.request
        return EngineUsage(
            prompt_tokens=len(request.ids),
            completion_tokens=self.num_new,
            cached_tokens=0,
            image_tokens=self.num_slots,
        )


class RoundRobin:
    """Answers up to `max_num_seqs` requests at once; the others wait."""

    def __init__(self, model: ChatModel, *, max_num_seqs: int = 8) -> None:
        self.model, self.max_num_seqs = model, max_num_seqs
        self._context_id = model.processor.tokenizer.token_id(IMG_CONTEXT) or 0
        self._decode = partial(model.processor.tokenizer.decode, keep=GROUNDING_TOKENS, cleans_up=False)
        self._changed = Condition()
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._is_closing = False
        self._vision_seconds, self._num_tiles = 0.0, 0
        self._thread = Thread(target=self._run, name="internvl-answers", daemon=True)

    async def __aenter__(self) -> RoundRobin:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stats(self) -> EngineStats:
        cache = self.model.vision_cache
        with self._changed:
            return EngineStats(
                num_running=len(self._running),
                num_waiting=len(self._waiting),
                num_image_queries=cache.num_hits + cache.num_misses,
                num_image_hits=cache.num_hits,
                vision_seconds=self._vision_seconds,
                num_tiles=self._num_tiles,
            )

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Deltas until every answer has ended. Raises EngineError if the thread is gone."""
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta] = asyncio.Queue()
        num_slots = request.ids.count(self._context_id) if request.images else 0
        job = Job(request, num_slots, lambda delta: _hand_over(loop, deltas, delta))
        self._submit(job)
        try:
            while True:
                delta = await deltas.get()
                yield delta
                if delta.usage or delta.error:
                    return
        finally:
            job.is_cancelled = True
            # The thread looks at it before its next step.

    def _submit(self, job: Job) -> None:
        with self._changed:
            if not self.is_alive or self._is_closing:
                raise EngineError("the server has stopped computing; send the request again later")
            self._waiting.append(job)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._admit():
                for job in self._running:
                    self._advance(job)
        finally:
            with self._changed:
                self._is_closing = True
                left = [*self._running, *self._waiting]
                self._running, self._waiting = [], []
            for job in left:
                job.fail(EngineError("the server stopped before the answer was finished; send it again"))

    def _admit(self) -> bool:
        """Lets go of what is over, takes on what waits, sleeps while there is nothing; False at the end."""
        with self._changed:
            while True:
                self._running = [job for job in self._running if not job.is_over]
                self._waiting = [job for job in self._waiting if not job.is_cancelled]
                if self._is_closing:
                    return False
                while self._waiting and len(self._running) < self.max_num_seqs:
                    first = min(self._waiting, key=lambda job: job.request.priority)
                    self._waiting.remove(first)
                    self._running.append(first)
                if self._running:
                    return True
                self._changed.wait()

    def _advance(self, job: Job) -> None:
        if job.is_cancelled:
            return
        try:
            job.step(self._prepare)
        except InternVLError as reason:
            job.fail(reason)
        except (RuntimeError, MemoryError) as reason:
            # torch says so when memory is short; the other requests can go on.
            job.fail(EngineError(f"computing the answer failed: {reason}"))

    @torch.inference_mode()
    def _prepare(self, request: EngineRequest) -> Batch:
        x_TD = self._embed(request)
        prompts = [Prompt(x_TD, sampling, self.model.seen_ids) for sampling in _samplings(request)]
        check_prompt(prompts[0], self.model.config.text)
        return Batch(self.model.vlm.llm, prompts, decode=self._decode)

    def _check_ids(self, ids: tuple[int, ...]) -> None:
        rows = self.model.config.text.vocab_size
        if not ids or not 0 <= min(ids) <= max(ids) < rows:
            raise InputError(f"a prompt has at least one id, all below {rows}")

    def _embed(self, request: EngineRequest) -> Tensor:
        vlm = self.model.vlm
        self._check_ids(request.ids)
        ids_T = torch.tensor(request.ids, device=self.model.device)
        if not request.images:
            return vlm.llm.embed(ids_T)  # type: ignore[no-any-return]
        start = time.perf_counter()
        keys = [image.key for image in request.images]
        found = self.model.vision_cache.vision_tokens(keys, [image.tiles_N3HW for image in request.images])
        self._vision_seconds += time.perf_counter() - start
        self._num_tiles += sum(len(image.tiles_N3HW) for image in request.images)
        slots_S = (ids_T == self._context_id).nonzero()[:, 0]
        return vlm.embed(ids_T, slots_S, torch.cat(found))


def _samplings(request: EngineRequest) -> list[Sampling]:
    """The settings of each answer: other seeds, or all would be the same."""
    sampling = request.sampling
    if sampling.seed is None:
        return [sampling] * request.n
    return [replace(sampling, seed=(sampling.seed + index) % 2**63) for index in range(request.n)]


def _hand_over(loop: asyncio.AbstractEventLoop, deltas: asyncio.Queue[Delta], delta: Delta) -> None:
    """From the computing thread to the loop; one that has ended wants nothing more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(deltas.put_nowait, delta)
