"""Functions in OpenAI's responses: how requests name them, and calls and what they gave as items.

The same as in chat requests, in other words. Pure values; knows no HTTP and no model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from internvl.serving.protocol import Parts, Strict
from internvl.serving.protocol_tools import MAX_TOOLS, Name

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class ResponseTool(Strict):
    """As `FunctionSignature`."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The same as chat requests have it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"})}


class ResponseToolName(Strict):
    type: Literal["function"]
    name: Name


ResponseTools = Annotated[list[ResponseTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
ResponseToolChoice = Literal["none", "auto", "required"] | ResponseToolName


class CallItem(Strict):
    """An earlier call; `arguments` are JSON, as text."""

    type: Literal["function_call"]
    call_id: str
    name: Name
    arguments: str
    id: str | None = None
    status: Status | None = None

    def as_chat(self) -> dict[str, Any]:
        """A call of an assistant's message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class CallOutputItem(Strict):
    """What a function that was called gave back."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[InputText], Parts]
    id: str | None = None
    status: Status | None = None

    def as_chat(self) -> dict[str, Any]:
        """The message of a tool."""
        output = self.output
        content = (
            output if isinstance(output, str) else [{"type": "text", "text": one.text} for one in output]
        )
        return {"role": "tool", "tool_call_id": self.call_id, "content": content}


def choice_as_chat(choice: ResponseToolChoice | None) -> Any:
    """`tool_choice` as chat requests have it."""
    if isinstance(choice, ResponseToolName):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def add_call(messages: list[dict[str, Any]], item: CallItem) -> None:
    """Calls belong to the message of the assistant that they follow, or are one of their own."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(item.as_chat())


def tool_fields(tools: ResponseTools | None, choice: ResponseToolChoice | None) -> dict[str, Any]:
    """What a response says of its tools."""
    named = choice.model_dump() if isinstance(choice, ResponseToolName) else choice
    return {
        "tools": [tool.model_dump() for tool in tools or ()],
        "tool_choice": named or ("auto" if tools else "none"),
    }


def call_item(id: str, call: dict[str, Any], status: Status, *, is_empty: bool = False) -> dict[str, Any]:
    """The item of a call that a chat completion has; without its arguments if it is only announced."""
    return {
        "type": "function_call",
        "id": id,
        "call_id": call["id"],
        "name": call["function"]["name"],
        "arguments": "" if is_empty else call["function"]["arguments"],
        "status": status,
    }
