"""Answers of a given form, through the official client and over HTTP."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import httpx
import pytest
from openai import OpenAI

from internvl import ChatModel
from internvl.engine.constraint import Constraint
from internvl.serving.protocol_chat import ChatRequest
from tests.serving.conftest import Post, encoded, error_of, image_part, picture
from tests.serving.test_chat_completions import events

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "is_old": {"type": "boolean"}},
    "required": ["colour", "is_old"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "car", "schema": SCHEMA, "strict": True}}


def content_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    content: str = choice["message"]["content"]
    return content


def assert_follows(text: str) -> None:
    found = json.loads(text)
    assert found.keys() == {"colour", "is_old"}
    assert found["colour"] in ("red", "blue")
    assert isinstance(found["is_old"], bool)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": FORMAT},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ],
)
def test_answers_follow_a_schema(post: Post, fields: dict[str, Any]) -> None:
    content = [image_part(encoded(picture(56, 56))), {"type": "text", "text": "What car is it?"}]
    assert_follows(content_of(post(content, max_tokens=100, **fields)))


def test_a_stream_follows_it_too(post: Post) -> None:
    settings = {"max_tokens": 100, "temperature": 1.0, "seed": 1, "n": 2, "response_format": FORMAT}
    texts = ["", ""]
    for chunk in events(post("hi", stream=True, **settings)):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    for text in texts:
        assert_follows(text)


def test_any_object_is_one(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "JSON, please"}],
        max_tokens=40,
        response_format={"type": "json_object"},
    )
    assert (made.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    "fields", [{"guided_regex": "[ab]{3}"}, {"structured_outputs": {"regex": "[ab]{3}"}}]
)
def test_answers_follow_an_expression(post: Post, fields: dict[str, Any]) -> None:
    assert re.fullmatch("[ab]{3}", content_of(post("hi", max_tokens=20, **fields)))


def test_answers_are_one_of_the_choices(post: Post) -> None:
    choices = ["cat", "dog"]
    assert content_of(post("hi", max_tokens=20, guided_choice=choices)) in choices


@pytest.mark.parametrize(
    ("text", "first"),
    [("<ref>dog</ref>", "<ref>"), ("<ref>dog</ref>", "<"), ("<img>", "<"), ("see <s> and <|im_start|>", "s")],
)
def test_marks_in_forms_are_text(post: Post, model: ChatModel, text: str, first: str) -> None:
    id = model.processor.tokenizer.token_id(first)
    assert id is not None
    bias = {str(id): 100.0}
    assert content_of(post("hi", max_tokens=40, guided_choice=["cat", text], logit_bias=bias)) == text
    assert content_of(post("hi", max_tokens=40, guided_choice=[text])) == text
    assert json.loads(content_of(post("hi", max_tokens=40, guided_json={"enum": [text]}))) == text


def test_boxes_of_a_form_are_found(post: Post) -> None:
    number = "[0-9]{3}"
    box = rf"\[\[{number}, {number}, {number}, {number}\]\]"
    content = [image_part(encoded(picture(56, 56))), {"type": "text", "text": "Where is the cat?"}]
    answer = post(content, max_tokens=60, guided_regex=f"<ref>cat</ref><box>{box}</box>")
    assert re.fullmatch(f"<ref>cat</ref><box>{box}</box>", content_of(answer))
    (found,) = answer.json()["choices"][0]["message"]["boxes"]
    assert found["label"] == "cat"


def test_completions_have_forms_too(client: OpenAI) -> None:
    made = client.completions.create(
        model="tiny", prompt="2 + 2 = ", max_tokens=9, extra_body={"guided_choice": ["four", "five"]}
    )
    assert made.choices[0].text in ("four", "five")


def test_responses_have_them_under_their_own_name(client: OpenAI) -> None:
    made = client.responses.create(
        model="tiny",
        input="hi",
        max_output_tokens=100,
        text={"format": {"type": "json_schema", "name": "car", "schema": SCHEMA, "strict": True}},
    )
    assert_follows(made.output_text)
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.type == "json_schema"


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": "{"},
        {"guided_json": {"type": "no such type"}},
        {"guided_regex": "("},
        {"guided_choice": ["a"], "min_tokens": 2},
        {"guided_choice": ["a"], "ignore_eos": True},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_runs(post: Post, fields: dict[str, Any]) -> None:
    assert error_of(post("hi", **fields), 400)["message"]
    assert error_of(post("hi", **fields, stream=True), 400)["message"]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": nested(900)},
        {"guided_json": {"minimum": float("nan")}},
        {"guided_json": {"const": "\ud800"}},
        {"guided_json": "\ud800"},
        {"guided_regex": "((a{1000}){1000}){1000}"},
        {"guided_regex": "\\p{no}"},
    ],
)
def test_hostile_forms_are_the_clients_fault(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **fields})
    answer = http.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=20
    )
    assert answer.status_code in (200, 400), answer.text
    assert http.get("/health").status_code == 200


def test_text_is_no_form() -> None:
    messages = [{"role": "user", "content": "hi"}]
    for fields in ({}, {"response_format": {"type": "text"}}):
        assert ChatRequest.model_validate({"messages": messages, **fields}).constraint() is None
    asked = ChatRequest.model_validate({"messages": messages, "response_format": {"type": "json_object"}})
    assert asked.constraint() == Constraint(kind="json_schema", value='{"type": "object"}')


def test_each_value_has_its_confidence(post: Post, http: httpx.Client) -> None:
    fields: dict[str, Any] = {"response_format": FORMAT, "max_tokens": 100, "confidence": True}
    choice = post("hi", logprobs=True, **fields).json()["choices"][0]
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    sure = choice["confidence"]
    assert sure["answer"] == pytest.approx(math.exp(sum(logprobs) / len(logprobs)))
    assert sure["fields"].keys() == {"/colour", "/is_old"}
    # A token is a byte here, so that those of a value can be counted.
    text = choice["message"]["content"]
    colour = json.loads(text)["colour"]
    start = text.index(f'"{colour}"') + 1
    wrote = logprobs[start : start + len(colour) + 1]
    assert sure["fields"]["/colour"] == pytest.approx(math.exp(sum(wrote) / len(wrote)))

    without = post("hi", **fields).json()["choices"][0]
    assert (without["logprobs"], without["confidence"]) == (None, sure)
    chunks = [chunk["choices"][0] for chunk in events(post("hi", stream=True, **fields))]
    assert [chunk["confidence"] for chunk in chunks if "confidence" in chunk] == [sure]
    assert "confidence" in chunks[-1]
    plain = post("hi", confidence=True).json()["choices"][0]["confidence"]
    assert plain.keys() == {"answer"}
    assert 0 < plain["answer"] < 1
    body = {"prompt": "ab", "max_tokens": 90, "guided_json": SCHEMA, "confidence": True, "n": 2}
    for choice in http.post("/v1/completions", json=body).json()["choices"]:
        assert choice["confidence"]["fields"].keys() == {"/colour", "/is_old"}
    streamed = http.post("/v1/completions", json={**body, "n": 1, "stream": True})
    assert events(streamed)[-1]["choices"][0]["confidence"]["fields"]
    assert error_of(http.post("/v1/responses", json={"input": "x", "confidence": True}), 400)["param"]
