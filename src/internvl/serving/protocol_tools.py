"""Functions that an answer may call: how requests name them, how the model is told, how a call must look.

The models have no format of their own for this; here it is the one of Qwen2.5 and Hermes, on which their
language models were trained. Pure values; knows no HTTP and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from internvl.engine.constraint import JSON_FORM, Constraint
from internvl.serving.protocol import Strict
from internvl.serving.protocol_forms import as_text

MAX_TOOLS = 128
OPENING, CLOSING = "<tool_call>", "</tool_call>"
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""  # noqa: E501

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionSignature(Strict):
    """`parameters` is a JSON schema; without one the function takes none."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionSignature


class FunctionName(Strict):
    name: Name


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class FunctionCall(Strict):
    """`arguments` are JSON, as text."""

    name: Name
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: FunctionCall


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def with_tools(
    messages: Sequence[dict[str, Any]], tools: Sequence[Tool], system: str
) -> list[dict[str, Any]]:
    """Messages whose system message also tells of the tools; `system` is the one where there is none."""
    if not tools:
        return list(messages)
    signatures = [as_text(one.model_dump(exclude_none=True, exclude={"strict"})) for one in tools]
    told = TOLD.format(signatures="\n".join(signatures))
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": f"{system}\n\n{told}".lstrip()}, *messages]
    content = messages[0]["content"]
    longer = (
        f"{content}\n\n{told}"
        if isinstance(content, str)
        else [*content, {"type": "text", "text": f"\n\n{told}"}]
    )
    return [{"role": "system", "content": longer}, *messages[1:]]


def spoken_calls(calls: Sequence[ToolCall]) -> str:
    """Earlier calls, as the model has written them."""
    return "\n".join(
        f'{OPENING}\n{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}\n'
        f"{CLOSING}"
        for call in calls
    )


def call_constraint(tools: Sequence[Tool], *, several: bool) -> Constraint:
    """One call of one of these, or several calls, and nothing else."""
    names = " | ".join(f"call_{number}" for number in range(len(tools)))
    rules = [
        'start: one ("\\n" one)*' if several else "start: one",
        f'one: "{OPENING}\\n" ({names}) "\\n{CLOSING}"',
    ]
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": "{tool.function.name}", "arguments": ')
        schema = {"x-guidance": JSON_FORM, **(tool.function.parameters or NO_ARGUMENTS)}
        rules += [
            f'call_{number}: {head} arguments_{number} "}}"',
            f"arguments_{number}: %json {as_text(schema)}",
        ]
    return Constraint(kind="grammar", value="\n".join(rules))
