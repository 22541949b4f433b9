"""A parsed request to what the engine takes: media read, prompt written, pictures cut, lengths checked.

Knows no HTTP. Pictures are read by `decoders` in other processes and cut into tiles in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from internvl.api.chat import ChatModel
from internvl.api.engine import make_request
from internvl.api.explanation import Explanation, PictureExplanation, explain_inputs, explain_picture
from internvl.api.request import read_request
from internvl.engine.request import EngineRequest
from internvl.errors import ContextOverflowError, RequestError
from internvl.generation.prompt import context_limit
from internvl.processing.processor import Inputs
from internvl.serving.caller import Caller
from internvl.serving.decoders import Decoders
from internvl.serving.media import MediaPolicy, Medium, check_bytes, find_medium
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_messages import MediaReference, as_messages, find_media
from internvl.serving.protocol_tools import with_tools
from internvl.serving.threads import in_thread

DEFAULT_NEW_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A request the engine can take, and what its answer has to tell about the pictures."""

    request: EngineRequest
    pictures: tuple[PictureExplanation, ...]


class Preparer:
    """Prepares requests for one chat model.

    `find_file` gives the content of an uploaded file by its id, or None. `max_model_len` shortens the model's
    own context. `default_new_tokens` are for requests that name no number, if there is room.
    """

    def __init__(
        self,
        model: ChatModel,
        decoders: Decoders,
        find_file: Callable[[str], bytes | None],
        *,
        max_model_len: int | None = None,
        default_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> None:
        limit = context_limit(model.config.text)
        self.model, self.decoders, self.find_file = model, decoders, find_file
        self.max_model_len = min(max_model_len or limit, limit)
        self.default_new_tokens = default_new_tokens

    async def chat(self, chat: ChatRequest, key: str, caller: Caller, adapter: str | None = None) -> Prepared:
        """Raises InputError for whatever the request has that cannot be answered."""
        async with self._pictures(chat) as pictures:
            return await in_thread(self._prepare, chat, pictures, key, caller, adapter)

    async def explain(self, chat: ChatRequest) -> Explanation:
        """What `chat` would run. Nothing is computed."""
        async with self._pictures(chat) as pictures:
            return await in_thread(self._explain, chat, pictures)

    @asynccontextmanager
    async def _pictures(self, chat: ChatRequest) -> AsyncIterator[list[list[Any]]]:
        media = await find_sources(find_media(chat.messages), self.decoders.policy, self.find_file)
        async with self.decoders.read_all(media) as pictures:
            yield pictures

    def _prepare(
        self, chat: ChatRequest, pictures: list[list[Any]], key: str, caller: Caller, adapter: str | None
    ) -> Prepared:
        inputs = self._inputs(chat, pictures)
        new_tokens = self._new_tokens(chat.new_tokens, len(inputs.ids))
        return Prepared(
            request=make_request(
                key,
                inputs,
                chat.sampling(self.model.processor.stop_ids, new_tokens, chat.num_logprobs),
                n=chat.n or 1,
                priority=chat.priority or 0,
                client=caller.client,
                deadline=caller.deadline,
                constraint=chat.constraint(),
                prompt_logprobs=chat.prompt_logprobs,
                adapter=adapter,
            ),
            pictures=tuple(self._picture_explanations(inputs)),
        )

    def _explain(self, chat: ChatRequest, pictures: list[list[Any]]) -> Explanation:
        model = self.model
        inputs = self._inputs(chat, pictures)
        tokens = [model.processor.tokenizer.token(id) or "" for id in inputs.ids]
        value_bytes = model.vlm.llm.embed.weight.element_size()
        new_tokens = self._new_tokens(chat.new_tokens, len(inputs.ids))
        return explain_inputs(model.config, inputs, tokens, new_tokens, value_bytes)

    def _inputs(self, chat: ChatRequest, pictures: list[list[Any]]) -> Inputs:
        processor = self.model.processor
        messages = as_messages(chat.messages, pictures)
        messages = with_tools(messages, chat.offered_tools, processor.template.system_message)
        request = read_request(messages, (), chat.options(), processor.limits)
        return processor(
            request.conversation,
            total_tiles=request.total_tiles,
            max_tokens=self.max_model_len - (chat.new_tokens or 1),
        )

    def _new_tokens(self, wanted: int | None, length: int) -> int:
        return room_for_answer(wanted, length, self.max_model_len, self.default_new_tokens)

    def _picture_explanations(self, inputs: Inputs) -> list[PictureExplanation]:
        return [
            explain_picture(self.model.config, size, grid, count)
            for size, grid, count in zip(inputs.sizes, inputs.grids, inputs.tile_counts, strict=True)
        ]


async def find_sources(
    references: Sequence[MediaReference], policy: MediaPolicy, find_file: Callable[[str], bytes | None]
) -> list[Medium]:
    """Each as `find_source`, in a thread: content of megabytes is read and decoded."""
    return await in_thread(lambda: [find_source(one, policy, find_file) for one in references])


def find_source(one: MediaReference, policy: MediaPolicy, find_file: Callable[[str], bytes | None]) -> Medium:
    """An uploaded file by its id, or what the address names. Raises RequestError."""
    options: Mapping[str, Any] = one.options
    if one.address.startswith("file-"):
        content = find_file(one.address)
        if content is None:
            raise RequestError(
                f"there is no file {one.address[:80]!r}; upload it to /v1/files first",
                status=404,
                param=one.param,
                code="file_not_found",
            )
        content = check_bytes(content, policy, one.param)
        return Medium(kind=one.kind, content=content, options=tuple(options.items()), param=one.param)
    return find_medium(one.kind, one.address, policy, options=dict(options), param=one.param)


def room_for_answer(wanted: int | None, length: int, limit: int, default: int) -> int:
    """Tokens of an answer to a prompt of `length`. Raises ContextOverflowError where there is no room."""
    room = limit - length
    if room < (wanted or 1):
        raise ContextOverflowError(
            f"the prompt has {length} tokens and the answer may have {wanted or 1}, together "
            f"{length + (wanted or 1)}; this model is served with {limit} positions: shorten the prompt, "
            "lower max_tokens, or give pictures fewer tiles (max_tiles)"
        )
    return wanted or min(default, room)
