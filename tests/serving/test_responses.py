"""Responses are chat completions in other words."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI

from internvl.serving.protocol_responses import ResponseRequest
from internvl.serving.response_items import Items
from tests.serving.conftest import JSON, Post, data_url, encoded, error_of, image_part, picture
from tests.serving.test_tool_calls import WEATHER as CHAT_WEATHER

PATH = "/v1/responses"
CLOCK: dict[str, Any] = {"type": "function", "name": "get_time"}
WEATHER: dict[str, Any] = {"type": "function", **CHAT_WEATHER["function"], "strict": True}
CALLING: dict[str, Any] = {
    "model": "tiny",
    "input": "How warm is it in Rome?",
    "tools": [WEATHER, CLOCK],
    "tool_choice": {"type": "function", "name": "get_weather"},
    "max_output_tokens": 200,
}
PHOTO = encoded(picture(112, 56))
SHOWN = {"type": "input_image", "image_url": data_url(PHOTO), "detail": "auto"}


def asked(*parts: dict[str, Any]) -> Any:
    return [{"role": "user", "content": list(parts)}]


def test_the_answer_is_that_of_a_chat_completion(client: OpenAI, post: Post) -> None:
    made = client.responses.create(
        model="tiny", input=asked(SHOWN, {"type": "input_text", "text": "what?"}), max_output_tokens=4
    )
    chat = post([image_part(PHOTO, detail="auto"), {"type": "text", "text": "what?"}]).json()
    assert made.output_text == chat["choices"][0]["message"]["content"]
    assert (made.status, made.incomplete_details and made.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert made.usage is not None
    assert made.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert made.usage.output_tokens == 4
    assert made.usage.model_extra == {"images": chat["usage"]["images"]}


def test_events_come_in_order_and_join_to_the_answer(client: OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "tiny",
        "input": "hi",
        "instructions": "Be brief.",
        "max_output_tokens": 9,
    }
    whole = client.responses.create(**settings)
    events = list(client.responses.create(**settings, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_an_answer_can_be_sent_back(client: OpenAI) -> None:
    first = client.responses.create(model="tiny", input="hi", max_output_tokens=3)
    history: Any = [
        {"role": "user", "content": "hi"},
        *(one.model_dump(exclude_none=True) for one in first.output),
        {"role": "user", "content": "more"},
    ]
    assert client.responses.create(model="tiny", input=history, max_output_tokens=3).output_text is not None


def test_a_call_and_what_it_gave(client: OpenAI) -> None:
    made = client.responses.create(**CALLING)
    (call,) = made.output
    assert call.type == "function_call"
    assert (call.name, call.status, made.status) == ("get_weather", "completed", "completed")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    assert made.tool_choice.name == "get_weather"  # type: ignore[union-attr]
    assert [tool.name for tool in made.tools] == ["get_weather", "get_time"]  # type: ignore[union-attr]
    history: Any = [
        {"role": "user", "content": CALLING["input"]},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "30 degrees"},
    ]
    after = client.responses.create(model="tiny", input=history, tools=[CLOCK], max_output_tokens=3)  # type: ignore[list-item]
    assert [one.type for one in after.output] == ["message"]
    assert after.tool_choice == "auto"


def test_the_events_of_a_call(client: OpenAI) -> None:
    events = list(client.responses.create(**CALLING, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    added, delta, done, whole, last = events[2:]
    assert (added.item.arguments, added.item.status) == ("", "in_progress")
    assert delta.delta == done.arguments == whole.item.arguments
    assert delta.item_id == added.item.id == whole.item.id
    assert last.response.output == [whole.item]


def test_text_around_calls_is_one_message() -> None:
    items = Items(may_call=True)
    call = {"id": "call_1", "function": {"name": "f", "arguments": "{}"}}
    events = [*items.begin(), *items.say("\n")]
    assert events == []
    events += [*items.call(call), *items.say("so"), *items.say(" it is"), *items.end("completed")]
    assert [one["type"] for one in items.done] == ["function_call", "message"]
    assert items.done[1]["content"][0]["text"] == "\nso it is"
    assert (
        "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta") == "\nso it is"
    )
    only = Items(may_call=True)
    assert [*only.say("\n")] == []
    assert [one["output_index"] for one in [*only.call(call), *only.end("completed")]] == [0] * 4
    assert [one["type"] for one in only.done] == ["function_call"]
    empty = Items(may_call=True)
    assert [one["type"].split(".")[-1] for one in [*empty.begin(), *empty.end("incomplete")]] == [
        "added", "added", "done", "done", "done",
    ]  # fmt: skip


def test_items_are_messages_of_a_chat() -> None:
    text = {"type": "output_text", "text": "Let me see."}
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    output = {
        "type": "function_call_output",
        "call_id": "c1",
        "output": [{"type": "input_text", "text": "5"}],
    }
    request = ResponseRequest.model_validate(
        {"input": [{"role": "user", "content": "hi"}, call, {**call, "call_id": "c2"}, output,
                   {"role": "assistant", "content": [text]}, call]}
    )  # fmt: skip
    messages = [one.model_dump(exclude_none=True) for one in request.as_chat().messages]
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "assistant"]
    assert [one["id"] for one in messages[1]["tool_calls"]] == ["c1", "c2"]
    assert messages[2] == {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "5"}]}
    assert (messages[3]["content"][0]["text"], len(messages[3]["tool_calls"])) == ("Let me see.", 1)


@pytest.mark.parametrize(
    "fields", [{"instructions": "\ud800"}, {"tools": [{**CLOCK, "description": "\udfff"}]}]
)
def test_half_a_surrogate_pair_comes_back_as_it_was(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"input": "hi \ud800", "max_output_tokens": 2, **fields}
    whole = http.post(PATH, content=json.dumps(body), headers=JSON)
    assert whole.status_code == 200, whole.text
    assert str(whole.json()).count("\\ud") == 1
    streamed = http.post(PATH, content=json.dumps({**body, "stream": True}), headers=JSON)
    last = json.loads(streamed.text.rpartition("data: ")[2])
    assert last["type"] == "response.completed" or last["type"] == "response.incomplete"
    assert last["response"]["output"][0]["content"] == whole.json()["output"][0]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "hi", "tools": []}, "tools"),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "hi", "tools": [{**CLOCK, "function": {}}]}, "tools[0].function"),
        ({"input": "hi", "tool_choice": "required"}, None),
        ({"input": "hi", "tools": [CLOCK], "tool_choice": {"type": "function", "name": "none"}}, None),
        ({"input": "hi", "max_tool_calls": 1}, "max_tool_calls"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]"),
        ({"input": [{"type": ["message"]}]}, "input[0]"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": "hi", "store": True}, "store"),
        ({"input": "hi", "text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"input": "hi", "text": {"format": {"type": "json_schema"}}}, "response_format"),
        ({"input": []}, "input"),
        ({"input": asked({"type": "input_image"})}, None),
        ({"input": asked({"type": "input_audio"})}, "input[0].content[0]"),
        ({"input": [{"role": "assistant", "content": [SHOWN]}]}, None),
        ({"input": asked({"type": "input_image", "image_url": "http://127.0.0.1/x"})}, None),
        ({}, "input"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_refusals(http: httpx.Client, fields: dict[str, Any], param: str | None, is_stream: bool) -> None:
    error = error_of(http.post(PATH, json={**fields, "stream": is_stream}), 400)
    assert param is None or error["param"] == param
