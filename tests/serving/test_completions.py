"""Text is continued as the library continues its ids."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from openai import OpenAI

from internvl import ChatModel
from internvl.processing.tokenizer import Encoding, Tokenizer
from tests.serving.conftest import error_of
from tests.serving.test_chat_completions import events

PATH = "/v1/completions"


def continued(model: ChatModel, text: str, count: int) -> str:
    ids = model.generate(model.processor.tokenizer.encode(text).ids, max_new_tokens=count)
    return model.processor.tokenizer.decode(ids, cleans_up=False)


def test_prompts_of_every_shape(http: httpx.Client, model: ChatModel) -> None:
    ids = [model.processor.tokenizer.encode(text).ids for text in ("ab", "xyz")]
    for prompt in (["ab", "xyz"], ids):
        made = http.post(PATH, json={"prompt": prompt, "max_tokens": 5}).json()
        assert [one["index"] for one in made["choices"]] == [0, 1]
        assert [one["text"] for one in made["choices"]] == [
            continued(model, "ab", 5),
            continued(model, "xyz", 5),
        ]
        assert made["usage"]["prompt_tokens"] == len(ids[0]) + len(ids[1])
        assert made["usage"]["completion_tokens"] == 10
    for one in ("ab", ids[0]):
        made = http.post(PATH, json={"prompt": one, "max_tokens": 5}).json()
        assert made["choices"][0]["text"] == continued(model, "ab", 5)


def test_marks_of_the_vocabulary_are_what_they_name(http: httpx.Client, model: ChatModel) -> None:
    made = http.post(PATH, json={"prompt": "<|im_start|>user", "max_tokens": 1}).json()
    assert made["usage"]["prompt_tokens"] == 1 + len("user")


def test_the_official_client(client: OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 6, "logprobs": 2, "n": 2}
    whole = client.completions.create(**settings, temperature=1.0, seed=4)
    assert whole.object == "text_completion"
    logprobs = whole.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 6
    assert logprobs.token_logprobs is not None
    assert all(value <= 0 and math.isfinite(value) for value in logprobs.token_logprobs)
    texts = ["", ""]
    chunks = list(
        client.completions.create(
            **settings, temperature=1.0, seed=4, stream=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 3000}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, None),
        ({"prompt": [10**6]}, None),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 3}, None),
        ({"prompt": "a", "best_of": 1, "n": 2}, None),
        ({"prompt": "a", "best_of": 2, "n": 2}, None),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a", "b"], "stream": True}, None),
        ({}, "prompt"),
    ],
)
def test_refusals(http: httpx.Client, fields: dict[str, Any], param: str | None) -> None:
    error = error_of(http.post(PATH, json=fields), 400)
    assert param is None or error["param"].startswith(param)


def test_defaults_may_be_written_out(http: httpx.Client) -> None:
    """As OpenAI has them."""
    plain = http.post(PATH, json={"prompt": "ab", "ignore_eos": True}).json()
    assert plain["usage"]["completion_tokens"] == 16
    for fields in ({"max_tokens": None}, {"best_of": 1}, {"best_of": 1, "n": 1}, {"top_p": 1}):
        written = http.post(PATH, json={"prompt": "ab", "ignore_eos": True, **fields}).json()
        assert written["usage"] == plain["usage"]
        assert written["choices"] == plain["choices"]


@pytest.mark.parametrize("top_p", [0, -0.5, 1.5])
def test_the_range_of_top_p_is_told(http: httpx.Client, top_p: float) -> None:
    error = error_of(http.post(PATH, json={"prompt": "a", "top_p": top_p}), 400)
    assert error["param"] == "top_p"
    assert f"above 0 and at most 1, got {top_p:g}; temperature 0" in error["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_grounding_tags_are_left_out_unless_asked_for(
    http: httpx.Client, model: ChatModel, is_stream: bool
) -> None:
    def answer(word: str, **fields: Any) -> tuple[str, list[int]]:
        """Text and offsets of three tokens that are `word`, or of what the fields ask for."""
        bias = {str(model.processor.tokenizer.encode(word).ids[-1]): 100}
        asked = {"prompt": "a", "max_tokens": 3, "logprobs": 0, "logit_bias": bias, "stream": is_stream}
        found = http.post(PATH, json={**asked, **fields})
        choices = [one["choices"][0] for one in (events(found) if is_stream else [found.json()])]
        offsets = [offset for one in choices if one["logprobs"] for offset in one["logprobs"]["text_offset"]]
        return "".join(one["text"] for one in choices), offsets

    assert answer("<ref>") == answer("<ref>", skip_special_tokens=True) == ("", [0, 0, 0])
    assert answer("<ref>", skip_special_tokens=False) == ("<ref><ref><ref>", [0, 5, 10])
    assert answer("<") == ("<<<", [0, 1, 2])
    form = {"guided_choice": ["<ref>a</ref>"], "max_tokens": 20}
    assert answer("x", **form)[0] == "<ref>a</ref>"


@pytest.mark.parametrize("prompt", ["a" * 1_000_000, ["ab", "a" * 1_000_000]])
def test_what_no_context_holds_is_not_read_as_tokens(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, prompt: str | list[str]
) -> None:
    encode = Tokenizer.encode

    def read(tokenizer: Tokenizer, text: str, **options: Any) -> Encoding:
        assert len(text) < 1_000_000
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", read)
    error = error_of(http.post(PATH, json={"prompt": prompt, "max_tokens": 1}), 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "2048 positions" in error["message"]


def test_parts_of_characters_in_logprobs(http: httpx.Client) -> None:
    text = "\u00e9a\u00e9"
    asked = {"prompt": "a", "max_tokens": 9, "logprobs": 20, "guided_choice": [text]}
    (whole,) = http.post(PATH, json=asked).json()["choices"]
    assert whole["text"] == text
    assert whole["logprobs"]["text_offset"][:5] == [0, 0, 1, 2, 2]
    names = ["bytes:\\xc3", "bytes:\\xa9"]
    assert whole["logprobs"]["tokens"][:5] == [*names, "a", *names]
    chunks = [
        one["choices"][0]["logprobs"] for one in events(http.post(PATH, json={**asked, "stream": True}))
    ]
    for name in ("text_offset", "tokens"):
        assert [value for one in chunks if one for value in one[name]] == whole["logprobs"][name]
