"""Functions that answers call: the prompt, the calls in a text, and the official client against a server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pydantic import ValidationError

from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_messages import as_messages
from internvl.serving.protocol_tools import with_tools
from internvl.serving.tool_calls import CallReader
from tests.serving.conftest import Post, error_of
from tests.serving.test_chat_completions import events

USER = {"role": "user", "content": "How warm is it in Rome?"}
UNITS = {"enum": ["C", "F"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "How warm it is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": UNITS},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, CLOCK]
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def parse(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [USER], **fields})


def cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "shown", "names"),
    [
        ("plain < text <tool", "plain < text <tool", []),
        (CALL, "", ["get_weather"]),
        (f"First this.\n{CALL}\n{CALL} Done.", "First this.\n\n Done.", ["get_weather", "get_weather"]),
        ("<tool_call>{}</tool_call>!", "<tool_call>{}</tool_call>!", []),
        ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
        ('<tool_call>{"name": [1]}</tool_call>', '<tool_call>{"name": [1]}</tool_call>', []),
        ('<tool_call>{"name": "get_time"}</tool_call>', "", ["get_time"]),
        ('<tool_call>{"name": "get_ti', '<tool_call>{"name": "get_ti', []),
        ("<tool_call>" + "[" * 5000 + "</tool_call>", "<tool_call>" + "[" * 5000 + "</tool_call>", []),
    ],
)
def test_calls_are_taken_out_of_a_text(text: str, shown: str, names: list[str], size: int) -> None:
    reader = CallReader({"get_weather", "get_time"})
    found = "".join(reader.push(piece) for piece in cut(text, size)) + reader.finish()
    assert found == shown
    assert [call.name for call in reader.calls] == names
    assert len({call.id for call in reader.calls}) == len(names)


def test_half_a_surrogate_pair_in_a_call_can_be_sent() -> None:
    reader = CallReader({"f"})
    reader.push('<tool_call>{"name": "f", "arguments": {"ü": "\\ud83d"}}</tool_call>')
    (call,) = reader.calls
    assert call.arguments.encode() == '{"ü": "\\ud83d"}'.encode()


def test_text_before_a_call_is_not_held_back() -> None:
    reader = CallReader({"f"})
    assert [reader.push(piece) for piece in ("a", "b <", "c")] == ["a", "b ", "<c"]
    assert CallReader(()).push(CALL) == CALL


def test_the_system_message_tells_of_the_tools() -> None:
    chat = parse(tools=TOOLS)
    (system, user) = with_tools(as_messages(chat.messages, []), chat.offered_tools, "Be kind.")
    assert system["role"] == "system"
    assert system["content"].startswith("Be kind.\n\n# Tools\n")
    assert '\n{"type": "function", "function": {"name": "get_time"}}\n</tools>' in system["content"]
    assert user == USER
    own = [{"role": "system", "content": [{"type": "text", "text": "Mine."}]}, USER]
    chat = parse(tools=TOOLS, messages=own)
    system = with_tools(as_messages(chat.messages, []), chat.offered_tools, "Be kind.")[0]
    assert [part["text"][:10] for part in system["content"]] == ["Mine.", "\n\n# Tools\n"]
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        chat = parse(**fields)
        assert with_tools(as_messages(chat.messages, []), chat.offered_tools, "Be kind.") == [USER]


def test_earlier_calls_and_what_they_gave_are_read_as_they_were_written() -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    chat = parse(
        messages=[
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "30"}]},
        ]
    )
    assert as_messages(chat.messages, []) == [
        USER,
        {"role": "assistant", "content": CALL},
        {"role": "user", "content": "<tool_response>\n30\n</tool_response>"},
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [CLOCK, CLOCK]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
        {"tool_choice": "required"},
        {"tool_choice": NAMED},
        {"tools": [CLOCK], "tool_choice": NAMED},
        {"tools": TOOLS, "response_format": {"type": "json_object"}},
        {"messages": [USER, {"role": "assistant"}]},
    ],
)
def test_what_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(**fields)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_required_comes(client: OpenAI, choice: Any) -> None:
    tools: Any = [WEATHER]
    made = client.chat.completions.create(
        model="tiny", messages=[USER], tools=tools, tool_choice=choice, max_tokens=200, temperature=1, seed=2
    )  # type: ignore[call-overload]
    assert made.choices[0].finish_reason == "tool_calls"
    assert made.choices[0].message.content is None
    (call,) = made.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Rome", "Oslo")
    assert arguments["unit"] in ("C", "F")
    back = [USER, made.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "30"}]
    after = client.chat.completions.create(model="tiny", messages=back, tools=tools, max_tokens=3)  # type: ignore[call-overload]
    assert after.choices[0].message.content is not None


def test_a_stream_has_the_same_call(post: Post) -> None:
    settings = {
        "tools": TOOLS,
        "tool_choice": "required",
        "max_tokens": 200,
        "n": 2,
        "temperature": 1,
        "seed": 1,
    }
    whole = post("hi", **settings).json()["choices"]
    found: list[list[Any]] = [[], []]
    reasons: list[Any] = [None, None]
    for chunk in events(post("hi", stream=True, **settings)):
        (choice,) = chunk["choices"]
        found[choice["index"]] += choice["delta"].get("tool_calls", [])
        reasons[choice["index"]] = choice["finish_reason"]
    assert reasons == ["tool_calls", "tool_calls"]
    for calls, choice in zip(found, whole, strict=True):
        assert [call["index"] for call in calls] == [0]
        (expected,) = choice["message"]["tool_calls"]
        assert calls[0]["function"] == expected["function"]


def test_several_calls_may_be_asked_for(post: Post) -> None:
    settings = {"tools": [CLOCK], "tool_choice": "required", "parallel_tool_calls": True, "max_tokens": 400}
    message = post("hi", **settings).json()["choices"][0]["message"]
    assert {call["function"]["name"] for call in message["tool_calls"]} == {"get_time"}
    assert {call["function"]["arguments"] for call in message["tool_calls"]} == {"{}"}


def test_tools_may_be_left_alone(post: Post) -> None:
    choice = post("hi", tools=TOOLS).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert isinstance(choice["message"]["content"], str)


def test_parameters_that_cannot_be_followed_are_refused(post: Post, http: httpx.Client) -> None:
    function = {"name": "f", "parameters": {"type": "no such type"}}
    tools = [{"type": "function", "function": function}]
    assert error_of(post("hi", tools=tools, tool_choice="required"), 400)["message"]
    assert http.get("/health").status_code == 200
