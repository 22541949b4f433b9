"""Requests to continue text as it stands, without a template, and their answers. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from internvl.generation.result import TokenLogprob
from internvl.serving.protocol import MAX_IDS, MAX_TOP_LOGPROBS, Count, TokenId
from internvl.serving.protocol_chat import StreamOptions
from internvl.serving.protocol_forms import FormFields
from internvl.serving.protocol_replies import Head, Raw, Spell, ending

MAX_PROMPTS = 64
NEW_TOKENS = 16
"""OpenAI's number for requests that name none."""

Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Several = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)


class CompletionRequest(FormFields):
    """`/v1/completions`: one text or its ids, or several. Marks in it are what they name."""

    model: str | None = None
    prompt: str | Ids | Annotated[list[str], Several] | Annotated[list[Ids], Several]
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Literal[False] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs come with whole answers: leave stream out")
        if self.stream and len(self.prompts()) > 1:
            raise ValueError("stream takes one prompt; send several requests")
        return self

    @property
    def new_tokens(self) -> int:
        """Most tokens of an answer."""
        return self.max_tokens or NEW_TOKENS

    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[id for id in self.prompt if isinstance(id, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


def completion(
    head: Head, choices: Sequence[dict[str, Any]], used: dict[str, Any] | None, **more: Any
) -> dict[str, Any]:
    """A whole completion, or with `used` None one chunk of it."""
    document = {**head.of("text_completion"), "choices": list(choices), **more}
    return document if used is None else {**document, "usage": used}


def text_choice(
    index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, **ending(finish_reason)}


def text_logprobs(
    entries: Sequence[TokenLogprob],
    num_top: int,
    spell: Spell,
    offsets: Sequence[int],
    raw: Raw,
) -> dict[str, Any]:
    """The older form: parallel lists. `offsets`: how much text there was before each token."""
    tokens = [_name(entry.id, spell, raw) for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [max(entry.logprob, -9999.0) for entry in entries],
        "top_logprobs": [_top(entry, num_top, spell, raw) for entry in entries],
        "text_offset": list(offsets),
    }


def _top(entry: TokenLogprob, num_top: int, spell: Spell, raw: Raw) -> dict[str, float]:
    found: dict[str, float] = {}
    for id, logprob in entry.top[:num_top]:
        # Best first: of tokens with the same text that one stays.
        found.setdefault(_name(id, spell, raw), max(logprob, -9999.0))
    return found


def _name(id: int, spell: Spell, raw: Raw) -> str:
    """The text of a token, or of a part of a character what OpenAI writes: `bytes:\\xc3`."""
    text = spell(id)
    if "\ufffd" not in text:
        return text
    escaped = raw(id).decode("utf-8", "backslashreplace")
    return text if "\ufffd" in escaped else f"bytes:{escaped}"
