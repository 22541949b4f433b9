"""`internvl.pipeline(...)`: the call shapes of LMDeploy's `pipeline`, for scripts that have them.

    pipe = internvl.pipeline("nano")
    pipe(("What is this?", "a.jpg")).text
    pipe([("What is this?", "a.jpg"), "Hello!"])
    session = pipe.chat(("What is this?", "a.jpg"))
    session = pipe.chat("And what colour?", session=session)

Everything runs here, without a server. Knows no tensors; `ChatModel` answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from internvl.api.chat import ChatModel
from internvl.api.load import load
from internvl.api.reply import Reply
from internvl.api.request import as_list
from internvl.errors import InputError
from internvl.generation.result import FinishReason
from internvl.processing.conversation import IMAGE_MARK, Conversation

IMAGE_TOKEN = "<IMAGE_TOKEN>"
"""LMDeploy's word for the place of a picture in a prompt."""

Prompt: TypeAlias = str | tuple[str, Any] | Sequence[Mapping[str, Any]]
"""A question, a question with its picture or pictures, or OpenAI-style messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """Settings of an answer under LMDeploy's names and with its defaults: greedy unless `do_sample`.

    Raises InputError, when used, for values the library refuses.
    """

    n: int = 1
    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    temperature: float = 0.8
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    random_seed: int | None = None
    stop_words: Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_token_ids: Sequence[int] | None = None
    min_new_tokens: int | None = None
    skip_special_tokens: bool = True
    logprobs: int | None = None

    def options(self, end_ids: tuple[int, ...]) -> dict[str, Any]:
        """As words of `ChatModel.chat`; `end_ids` are those of the model."""
        if self.n != 1:
            raise InputError(
                f"n={self.n}: a pipeline gives one answer a prompt; repeat the prompt in the list"
            )
        drawn = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
        }
        return {
            **(drawn if self.do_sample else {}),
            "seed": self.random_seed if self.do_sample else None,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens or 0,
            "repetition_penalty": self.repetition_penalty,
            "stop": tuple(self.stop_words or ()),
            "stop_ids": (*(() if self.ignore_eos else end_ids), *(self.stop_token_ids or ())),
            "logit_bias": dict.fromkeys(self.bad_token_ids or (), -100.0),
            "logprobs": self.logprobs or 0,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer under LMDeploy's names, or a piece of one while it is streamed."""

    text: str
    index: int = 0
    input_token_len: int = 0
    generate_token_len: int = 0
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] = ()
    reply: Reply | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation: what was said so far and the last answer."""

    response: Response
    history: Conversation


class Pipeline:
    """Answers prompts of any of LMDeploy's shapes."""

    def __init__(self, model: ChatModel, gen_config: GenerationConfig | None = None) -> None:
        self.model = model
        self.gen_config = gen_config or GenerationConfig()

    def __call__(
        self, prompts: Prompt | Sequence[Prompt], gen_config: GenerationConfig | None = None, **settings: Any
    ) -> Response | list[Response]:
        """One answer for one prompt, a list for a list. `settings` are fields of `GenerationConfig`.

        Raises InputError for prompts and settings that cannot be used; nothing has been computed then.
        """
        options = self._options(gen_config, settings)
        singles = [prompts] if _is_single(prompts) else list(prompts)
        requests = [{**_request(one), **options} for one in singles]
        found = [self._response(*one) for one in enumerate(self.model.chat_batch(requests))]
        return found[0] if _is_single(prompts) else found

    def infer(
        self, prompts: Prompt | Sequence[Prompt], gen_config: GenerationConfig | None = None, **settings: Any
    ) -> Response | list[Response]:
        """As a call."""
        return self(prompts, gen_config, **settings)

    def stream_infer(
        self, prompts: Prompt | Sequence[Prompt], gen_config: GenerationConfig | None = None, **settings: Any
    ) -> Iterator[Response]:
        """Pieces of the answers, one prompt after the other; the last of each says why it ended."""
        options = self._options(gen_config, settings)
        for index, one in enumerate([prompts] if _is_single(prompts) else prompts):
            request = _request(one)
            stream = self.model.stream(request.pop("prompt"), request.pop("images", ()), **options)
            yield from (Response(text=piece, index=index) for piece in stream)
            last = self._response(index, stream.reply)
            yield Response(
                text="",
                index=index,
                input_token_len=last.input_token_len,
                generate_token_len=last.generate_token_len,
                finish_reason=last.finish_reason,
                token_ids=last.token_ids,
                reply=stream.reply,
            )

    def chat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        **settings: Any,
    ) -> Session:
        """The next round of a conversation; the session handed over stays as it is."""
        options = self._options(gen_config, settings)
        request = _request(prompt)
        history = None if session is None else session.history
        reply = self.model.chat(request.pop("prompt"), request.pop("images", ()), history=history, **options)
        return Session(response=self._response(0, reply), history=reply.history)

    def close(self) -> None:
        """Forget the vision tokens of pictures that were shown."""
        self.model.vision_cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _options(self, gen_config: GenerationConfig | None, settings: Mapping[str, Any]) -> dict[str, Any]:
        chosen = gen_config or self.gen_config
        known = [item.name for item in fields(GenerationConfig)]
        if unknown := settings.keys() - set(known):
            raise InputError(f"unknown setting {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        values = {name: getattr(chosen, name) for name in known}
        return GenerationConfig(**{**values, **settings}).options(self.model.processor.stop_ids)

    def _response(self, index: int, reply: Reply) -> Response:
        return Response(
            text=reply.text,
            index=index,
            input_token_len=reply.usage.prompt_tokens,
            generate_token_len=reply.usage.new_tokens,
            finish_reason=reply.finish_reason,
            token_ids=reply.ids,
            reply=reply,
        )


def pipeline(
    model: str | Path | ChatModel, gen_config: GenerationConfig | None = None, **options: Any
) -> Pipeline:
    """A pipeline for a model by name, path, or as `load` gave it; `options` are those of `load`.

    Raises as `load`, and InputError for a model that does not chat.
    """
    found = model if isinstance(model, ChatModel) else load(model, **options)
    if not isinstance(found, ChatModel):
        raise InputError(f"{model} does not chat: a pipeline needs a chat model")
    return Pipeline(found, gen_config)


def _is_single(prompts: Any) -> bool:
    """A string, a pair, or messages; a list of anything else is several prompts."""
    if isinstance(prompts, str | tuple):
        return True
    return bool(prompts) and all(isinstance(one, Mapping) for one in prompts)


def _request(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, tuple):
        if len(prompt) != 2 or not isinstance(prompt[0], str):
            raise InputError(f"a pair is a question and its pictures, not {len(prompt)} things")
        return {"prompt": prompt[0].replace(IMAGE_TOKEN, IMAGE_MARK), "images": as_list(prompt[1])}
    return {"prompt": prompt}
