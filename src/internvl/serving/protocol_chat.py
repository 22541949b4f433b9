"""A chat-completion request. Pure values; knows no HTTP, no tensors and no model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from internvl.engine.constraint import Constraint
from internvl.serving.protocol import MAX_TOP_LOGPROBS, Count, Strict
from internvl.serving.protocol_forms import FormFields
from internvl.serving.protocol_messages import ChatMessage, TileCount
from internvl.serving.protocol_tools import MAX_TOOLS, NamedTool, Tool, ToolChoice, call_constraint


class StreamOptions(Strict):
    include_usage: bool | None = None


class ProcessorFields(Strict):
    """vLLM's and LMDeploy's `mm_processor_kwargs`, for every picture of the request."""

    max_dynamic_patch: TileCount | None = None
    min_dynamic_patch: TileCount | None = None


class ChatRequest(FormFields):
    """`/v1/chat/completions`. `max_tiles` and its kin hold for pictures that name none of their own."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024, fail_fast=True)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    max_tiles: TileCount | None = None
    min_tiles: TileCount | None = None
    thumbnail: bool | None = None
    detail: Literal["low", "high", "auto"] | None = None
    total_tiles: Count | None = None
    mm_processor_kwargs: ProcessorFields | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs come with whole answers: leave stream out")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools must have names of their own")
        if not names and self.tool_choice not in (None, "none"):
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name}, which is not in tools")
        if self.offered_tools and super().constraint() is not None:
            raise ValueError("tools and a form of the answer exclude each other: leave one out")

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the answer may call."""
        tools = self.tools or []
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in tools if tool.function.name == self.tool_choice.function.name]
        return [] if self.tool_choice == "none" else tools

    def constraint(self) -> Constraint | None:
        """Also the form of a call, where one is required: one call, unless several are asked for."""
        if self.tool_choice == "required":
            return call_constraint(self.offered_tools, several=bool(self.parallel_tool_calls))
        if isinstance(self.tool_choice, NamedTool):
            return call_constraint(self.offered_tools, several=False)
        return super().constraint()

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of an answer; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int:
        """As `Sampling.logprobs`: 0 is none, and reporting the chosen token alone needs 1."""
        return max(1, self.top_logprobs or 0) if self.logprobs else int(bool(self.confidence))

    def options(self) -> dict[str, Any]:
        """The words of `ChatModel.chat` that say how pictures are cut."""
        kwargs = self.mm_processor_kwargs or ProcessorFields()
        chosen = {
            "max_tiles": self.max_tiles or kwargs.max_dynamic_patch,
            "min_tiles": self.min_tiles or kwargs.min_dynamic_patch,
            "thumbnail": self.thumbnail,
            "detail": self.detail,
            "total_tiles": self.total_tiles,
        }
        return {name: value for name, value in chosen.items() if value is not None}
