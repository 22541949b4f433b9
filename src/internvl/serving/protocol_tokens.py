"""Requests about tokens, as vLLM has them. Pure values."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from internvl.serving.protocol import MAX_IDS, Strict, TokenId
from internvl.serving.protocol_messages import ChatMessage


class TokenizeRequest(Strict):
    """`/tokenize`: of a text, or of messages with their template and pictures."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024, fail_fast=True)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """`/detokenize`: the text of ids, marks by their names."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
