"""Responses are chat completions in other words."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.serving.conftest import Post, data_url, encoded, error_of, image_part, picture

PATH = "/v1/responses"
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


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "hi", "tools": []}, "tools"),
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
