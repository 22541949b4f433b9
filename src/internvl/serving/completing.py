"""Text completions: prompts as they stand to the engine, and its deltas to answers.

Knows the protocol's objects and the engine; no routes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from internvl.engine.request import Delta, EngineRequest, EngineUsage
from internvl.errors import ContextOverflowError, DeadlineError, RequestError
from internvl.generation.confidence import Piece
from internvl.generation.result import TokenLogprob
from internvl.serving import protocol_completions as protocol
from internvl.serving.answering import deltas, spell
from internvl.serving.caller import Caller
from internvl.serving.chat_service import ChatService
from internvl.serving.prepare import room_for_answer
from internvl.serving.protocol_completions import CompletionRequest
from internvl.serving.protocol_replies import (
    Head,
    confidence_object,
    piece_of,
    prompt_logprobs_object,
    usage,
)
from internvl.serving.shown_text import TagFilter, tag_filters
from internvl.serving.tokenizing import ids_of_text


@dataclass(slots=True)
class Grown:
    """One answer so far, as it is shown."""

    filter: TagFilter
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    finish_reason: str | None = None

    @property
    def length(self) -> int:
        """With what is held back, in case it becomes a tag."""
        return len(self.text) + len(self.filter.held)

    def take(self, delta: Delta) -> str:
        """The text to be shown with this step."""
        self.pieces.append(piece_of(delta))
        shown = self.filter.push(delta.text)
        if delta.finish_reason is not None:
            shown += self.filter.finish()
        self.text += shown
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason
        return shown


class Completing:
    """One request to continue text."""

    def __init__(self, service: ChatService, asked: CompletionRequest, name: str, caller: Caller) -> None:
        """Raises InputError for prompts that cannot be continued; nothing is computed."""
        self.service, self.asked, self.caller = service, asked, caller
        self.tokenizer = service.model.processor.tokenizer
        self.arrived = time.monotonic()
        self.head = Head(id=f"cmpl-{secrets.token_hex(16)}", model=name, created=int(time.time()))
        self.requests = [self._request(index, one) for index, one in enumerate(asked.prompts())]
        self.late: list[DeadlineError] = []

    async def whole(self) -> dict[str, Any]:
        """All prompts together, the answers to the first one first."""
        tasks = [asyncio.ensure_future(self._answer(request)) for request in self.requests]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if len(self.late) == len(tasks):
            raise self.late[0]
        answers = [answer for grown, _ in found for answer in grown]
        choices = [
            {
                **protocol.text_choice(
                    index, one.text, one.finish_reason, self._logprobs(one.logprobs, one.offsets)
                ),
                **self._prompt_logprobs(one),
                **self._confidence(one),
            }
            for index, one in enumerate(answers)
        ]
        return protocol.completion(self.head, choices, usage(_sum([used for _, used in found]), ()))

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """Chunks of the answers to the only prompt."""
        options = self.asked.stream_options
        more: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        answers = self._answers(self.requests[0])
        used: EngineUsage | None = None
        async with aclosing(self._deltas(self.requests[0])) as steps:
            async for delta in steps:
                used = delta.usage or used
                answer = answers[delta.index]
                wants = self.asked.logprobs is not None
                entries = [delta.token.logprob] if wants and delta.token and delta.token.logprob else []
                logprobs = self._logprobs(entries, [answer.length] * len(entries))
                text = answer.take(delta)
                if not (text or entries or delta.finish_reason):
                    continue
                choice = protocol.text_choice(delta.index, text, delta.finish_reason, logprobs)
                if delta.finish_reason is not None:
                    choice |= self._confidence(answer)
                yield protocol.completion(self.head, [choice], None, **more)
        if more and used is not None:
            yield protocol.completion(self.head, [], usage(used, ()))

    def _request(self, index: int, prompt: str | list[int]) -> EngineRequest:
        asked, preparer = self.asked, self.service.preparer
        ids = prompt
        if isinstance(ids, str):
            ids = ids_of_text(preparer, ids, adds_special=True, reads_marks=True)
        if not ids:
            raise RequestError("the prompt is empty", param="prompt")
        try:
            room_for_answer(asked.new_tokens, len(ids), preparer.max_model_len, asked.new_tokens)
        except ContextOverflowError as reason:
            raise RequestError(str(reason), param="prompt", code="context_length_exceeded") from reason
        num_logprobs = int(bool(asked.confidence)) if asked.logprobs is None else max(1, asked.logprobs)
        request = EngineRequest(
            key=f"{self.head.id}-{index}",
            ids=tuple(ids),
            sampling=asked.sampling(self.service.model.processor.stop_ids, asked.new_tokens, num_logprobs),
            n=asked.n or 1,
            priority=asked.priority or 0,
            client=self.caller.client,
            deadline=self.caller.deadline,
            constraint=asked.constraint(),
            prompt_logprobs=asked.prompt_logprobs,
            adapter=self.service.adapter(self.head.model),
        )
        self.service.backend.plan(request)
        return request

    def _answers(self, request: EngineRequest) -> list[Grown]:
        """As they begin."""
        skips, has_form = self.asked.skip_special_tokens, request.constraint is not None
        return [Grown(one) for one in tag_filters(request.n, skips=skips, has_form=has_form)]

    async def _answer(self, request: EngineRequest) -> tuple[list[Grown], EngineUsage]:
        answers = self._answers(request)
        used: EngineUsage | None = None
        try:
            async with aclosing(self._deltas(request)) as steps:
                async for delta in steps:
                    answer = answers[delta.index]
                    if delta.token is not None and delta.token.logprob is not None:
                        answer.logprobs.append(delta.token.logprob)
                        answer.offsets.append(answer.length)
                    answer.take(delta)
                    used = delta.usage or used
        except DeadlineError as reason:  # the answers to other prompts are not lost with these
            self.late.append(reason)
            return [replace(one, finish_reason="deadline") for one in self._answers(request)], _sum(())
        assert used is not None, "the engine ended a request without its usage"
        return answers, used

    async def _deltas(self, request: EngineRequest) -> Any:
        metrics = self.service.metrics
        try:
            observe = metrics.observe
            async with aclosing(deltas(request, self.service.backend, observe, self.arrived)) as steps:
                async for delta in steps:
                    yield delta
        finally:
            metrics.forget(request.key)

    def _prompt_logprobs(self, answer: Grown) -> dict[str, Any]:
        """With the first answer to each prompt."""
        if answer.prompt_logprobs is None:
            return {}
        found = prompt_logprobs_object(answer.prompt_logprobs, lambda id: spell(self.tokenizer, id))
        return {"prompt_logprobs": found}

    def _confidence(self, answer: Grown) -> dict[str, Any]:
        if not self.asked.confidence:
            return {}
        form = self.requests[0].constraint
        is_json = form is not None and form.kind == "json_schema"
        return {"confidence": confidence_object(answer.pieces, is_json=is_json)}

    def _logprobs(self, entries: Sequence[TokenLogprob], starts: Sequence[int]) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        tokenizer = self.tokenizer
        return protocol.text_logprobs(
            entries, self.asked.logprobs, lambda id: spell(tokenizer, id), starts, tokenizer.token_bytes
        )


def _sum(parts: Sequence[EngineUsage]) -> EngineUsage:
    return EngineUsage(
        prompt_tokens=sum(one.prompt_tokens for one in parts),
        completion_tokens=sum(one.completion_tokens for one in parts),
        cached_tokens=sum(one.cached_tokens for one in parts),
        image_tokens=0,
    )
