"""Deltas of the engine to chat completions, whole or in chunks.

Knows the protocol's objects and the backend; no HTTP. Leaving an iterator of here cancels the request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from internvl.engine.request import Delta, EngineRequest, EngineUsage
from internvl.generation.confidence import Piece
from internvl.generation.result import TokenLogprob
from internvl.processing.tokenizer import Tokenizer
from internvl.serving import protocol_replies as replies
from internvl.serving.backend import Backend
from internvl.serving.prepare import Prepared
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.shown_text import TagFilter, tag_filters
from internvl.serving.tool_calls import CallReader

Observe = Callable[[Delta, float], None]
"""Told of every delta and when the request came, on the monotonic clock: for metrics."""


@dataclass(slots=True)
class Line:
    """One of the answers to a request, while it grows. `marked` is its text with grounding tags, without
    calls of functions."""

    reader: CallReader
    filter: TagFilter
    marked: str = ""
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, delta: Delta) -> str:
        """The text to be shown with this step."""
        self.pieces.append(replies.piece_of(delta))
        text = self.reader.push(delta.text)
        if delta.finish_reason is not None:
            text += self.reader.finish()
            is_call = self.reader.calls and delta.finish_reason == "stop"
            self.finish_reason = "tool_calls" if is_call else delta.finish_reason
        self.marked += text
        shown = self.filter.push(text)
        if delta.finish_reason is not None:
            shown += self.filter.finish()
        if delta.token is not None and delta.token.logprob is not None:
            self.logprobs.append(delta.token.logprob)
        self.text += shown
        return shown


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exchange:
    """A request that is being answered."""

    chat: ChatRequest
    prepared: Prepared
    head: replies.Head
    tokenizer: Tokenizer
    arrived: float
    observe: Observe

    def deltas(self, backend: Backend) -> AsyncGenerator[Delta, None]:
        return deltas(self.prepared.request, backend, self.observe, self.arrived)

    def lines(self) -> list[Line]:
        request, skips = self.prepared.request, self.chat.skip_special_tokens
        names = [tool.function.name for tool in self.chat.offered_tools]
        filters = tag_filters(request.n, skips=skips, has_form=request.constraint is not None)
        return [Line(CallReader(names), one) for one in filters]

    def spell(self, id: int) -> str:
        return spell(self.tokenizer, id)

    def logprobs(self, entries: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self.chat.logprobs:
            return None
        num_top = self.chat.top_logprobs or 0
        return replies.logprobs_object(entries, num_top, self.spell, self.tokenizer.token_bytes)

    def confidence(self, line: Line) -> dict[str, Any]:
        """A field of the choice, if it was asked for."""
        if not self.chat.confidence:
            return {}
        form = self.prepared.request.constraint
        is_json = form is not None and form.kind == "json_schema"
        return {"confidence": replies.confidence_object(line.pieces, is_json=is_json)}

    def boxes(self, line: Line) -> list[dict[str, Any]]:
        return replies.boxes(line.marked, self.prepared.pictures)

    def usage(self, used: EngineUsage) -> dict[str, Any]:
        return replies.usage(used, self.prepared.pictures)


def spell(tokenizer: Tokenizer, id: int) -> str:
    """The text of one token, marks by their names."""
    return tokenizer.decode([id], skip_special=False, cleans_up=False)


async def complete(exchange: Exchange, backend: Backend) -> dict[str, Any]:
    """The whole chat completion. Raises what the engine could not do."""
    lines, used, more = exchange.lines(), None, {}
    async with aclosing(exchange.deltas(backend)) as steps:
        async for delta in steps:
            lines[delta.index].take(delta)
            used = delta.usage or used
            if delta.prompt_logprobs is not None:
                found = replies.prompt_logprobs_object(delta.prompt_logprobs, exchange.spell)
                more = {"prompt_logprobs": found}
    assert used is not None, "the engine ended a request without its usage"
    choices = [
        replies.choice(
            index,
            line.finish_reason,
            message=replies.message_object(
                line.text, exchange.boxes(line), [call.as_json() for call in line.reader.calls]
            ),
            logprobs=exchange.logprobs(line.logprobs),
            **exchange.confidence(line),
        )
        for index, line in enumerate(lines)
    ]
    return {**replies.completion(exchange.head, choices, exchange.usage(used)), **more}


async def stream(exchange: Exchange, backend: Backend) -> AsyncIterator[dict[str, Any]]:
    """Chunks as they come. Raises what the engine could not do; chunks sent before stay valid."""
    options = exchange.chat.stream_options
    more: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
    lines, used = exchange.lines(), None
    opening = {"role": "assistant", "content": "", "refusal": None}
    for index in range(len(lines)):
        yield replies.chunk(exchange.head, [replies.choice(index, None, delta=opening)], **more)
    async with aclosing(exchange.deltas(backend)) as steps:
        async for delta in steps:
            used = delta.usage or used
            if (found := _step(exchange, lines[delta.index], delta)) is not None:
                yield replies.chunk(exchange.head, [found], **more)
    if more and used is not None:
        yield replies.chunk(exchange.head, [], usage=exchange.usage(used))


def _step(exchange: Exchange, line: Line, delta: Delta) -> dict[str, Any] | None:
    """What one step adds to a stream; None while nothing is certain."""
    num_calls = len(line.reader.calls)
    text = line.take(delta)
    entries = [delta.token.logprob] if exchange.chat.logprobs and delta.token and delta.token.logprob else []
    content: dict[str, Any] = {"content": text} if text else {}
    if calls := line.reader.calls[num_calls:]:
        numbered = enumerate(calls, start=num_calls)
        content["tool_calls"] = [{"index": index, **call.as_json()} for index, call in numbered]
    if delta.finish_reason is not None and (found := exchange.boxes(line)):
        content["boxes"] = found
    if not (content or entries or delta.finish_reason):
        return None
    logprobs = exchange.logprobs(entries) if entries else None
    more = exchange.confidence(line) if delta.finish_reason is not None else {}
    return replies.choice(delta.index, line.finish_reason, delta=content, logprobs=logprobs, **more)


async def deltas(
    request: EngineRequest, backend: Backend, observe: Observe, arrived: float
) -> AsyncGenerator[Delta, None]:
    """The engine's deltas, observed; its errors are raised."""
    async with aclosing(backend.stream(request)) as steps:
        async for delta in steps:
            observe(delta, arrived)
            if delta.error is not None:
                raise delta.error
            yield delta
