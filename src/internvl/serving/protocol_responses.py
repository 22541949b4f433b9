"""OpenAI's responses: requests with text, pictures and files, as chat requests, and their answers back.

Nothing is stored, so each request brings its whole conversation. Pure values; knows no HTTP and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from internvl.serving.protocol import Count, Parts, Penalty, Seconds, Strict
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_items import (
    CallItem,
    CallOutputItem,
    InputText,
    ResponseToolChoice,
    ResponseTools,
    add_call,
    choice_as_chat,
    tool_fields,
)


class OutputText(Strict):
    """As an earlier answer has it."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto"] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("a picture has either image_url or file_id")
        return self


class InputFile(Strict):
    type: Literal["input_file"]
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


InputPart = Annotated[InputText | OutputText | InputImage | InputFile, Field(discriminator="type")]


class InputMessage(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputPart], Parts]
    id: str | None = None
    status: Literal["completed", "incomplete"] | None = None
    phase: None = None


def _kind(item: Any) -> str | None:
    """Messages may leave their type out."""
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class TextFormat(Strict):
    """`response_format` with the schema in one object."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The same as chat requests have it."""
        inner: dict[str, Any] = {"name": self.name, "description": self.description, "strict": self.strict}
        inner["schema"] = self.schema_
        given = {name: value for name, value in inner.items() if value is not None}
        return {"type": self.type, "json_schema": given} if given else {"type": self.type}


class TextOptions(Strict):
    format: TextFormat | None = None


AS_IN_CHAT = (
    "model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "parallel_tool_calls", "user"
)  # fmt: skip


class ResponseRequest(Strict):
    """`/v1/responses`."""

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=1024, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    store: Literal[False] | None = None
    text: TextOptions | None = None
    tools: ResponseTools | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    timeout: Seconds | None = None
    user: str | None = None

    def as_chat(self) -> ChatRequest:
        """The same as a chat request. Raises pydantic's ValidationError for parts in a wrong place."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for one in self.input:
                _add(messages, one)
        fields = {name: getattr(self, name) for name in AS_IN_CHAT}
        if self.tools is not None:
            fields["tools"] = [tool.as_chat() for tool in self.tools]
        fields["tool_choice"] = choice_as_chat(self.tool_choice)
        if self.text is not None and self.text.format is not None:
            fields["response_format"] = self.text.format.as_chat()
        return ChatRequest.model_validate(
            {**fields, "messages": messages, "max_tokens": self.max_output_tokens}
        )


def _add(messages: list[dict[str, Any]], item: InputMessage | CallItem | CallOutputItem) -> None:
    if isinstance(item, CallItem):
        add_call(messages, item)
    elif isinstance(item, CallOutputItem):
        messages.append(item.as_chat())
    else:
        messages.append({"role": item.role, "content": _content(item.content)})


def _content(content: str | list[Any]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: InputText | OutputText | InputImage | InputFile) -> dict[str, Any]:
    if isinstance(part, InputImage):
        url = part.image_url if part.file_id is None else part.file_id
        return {"type": "image_url", "image_url": {"url": url, "detail": part.detail}}
    if isinstance(part, InputFile):
        file = {"file_data": part.file_data, "file_id": part.file_id, "filename": part.filename}
        return {"type": "file", "file": file}
    return {"type": "text", "text": part.text}


def response_object(asked: ResponseRequest, id: str, model: str, created: int) -> dict[str, Any]:
    """A response of which nothing is there yet."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "model": model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "temperature": asked.temperature or 0.0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "text": {"format": _format(asked)},
        **tool_fields(asked.tools, asked.tool_choice),
        "parallel_tool_calls": bool(asked.parallel_tool_calls),
        "previous_response_id": None,
        "store": False,
        "metadata": {},
        "usage": None,
    }


def _format(asked: ResponseRequest) -> dict[str, Any]:
    chosen = asked.text.format if asked.text else None
    return chosen.model_dump(by_alias=True, exclude_none=True) if chosen else {"type": "text"}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def item(id: str, text: str | None, status: str) -> dict[str, Any]:
    """The message of a response; None while it is empty."""
    content = [] if text is None else [text_part(text)]
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": content}


def finished(
    begun: Mapping[str, Any], output: Sequence[Any], cut_by: str | None, used: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole response; `used` is the usage of a chat completion. `cut_by` is what cut it short."""
    return {
        **begun,
        "status": "completed" if cut_by is None else "incomplete",
        "incomplete_details": None if cut_by is None else {"reason": cut_by},
        "output": list(output),
        "usage": {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
            "images": used["images"],
        },
    }
