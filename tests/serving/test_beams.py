"""Beam searches over HTTP are the library's."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from internvl import ChatModel
from internvl.generation.beam import search
from internvl.generation.prompt import Prompt
from tests.serving.conftest import Post, encoded, error_of, image_part, picture
from tests.serving.test_forms import FORMAT
from tests.serving.test_tool_calls import CLOCK

CHAT = "/v1/chat/completions"


def test_the_best_beam_is_the_librarys(post: Post, model: ChatModel) -> None:
    photo = picture(56, 56)
    content = [image_part(encoded(photo)), {"type": "text", "text": "what?"}]
    fields = {"use_beam_search": True, "best_of": 3, "length_penalty": 0.5}
    choices = post(content, **fields).json()["choices"]
    shown = [{"type": "image", "image": photo}, {"type": "text", "text": "what?"}]
    reply = model.chat(
        [{"role": "user", "content": shown}], num_beams=3, length_penalty=0.5, max_new_tokens=4
    )
    assert [choice["message"]["content"] for choice in choices] == [reply.text]


def test_completions_give_the_best_few(client: OpenAI, model: ChatModel) -> None:
    made = client.completions.create(
        model="tiny", prompt="ab", max_tokens=5, n=3, extra_body={"use_beam_search": True}
    )
    ids = model.processor.tokenizer.encode("ab", eos=False).ids
    sampling = model.sampling(num_beams=3, max_new_tokens=5)
    found = search(model.vlm.llm, Prompt(model.vlm.llm.embed.weight[ids], sampling, model.seen_ids))
    decode = model.processor.tokenizer.decode
    expected = [decode(beam.ids, cleans_up=False) for beam in found.best(3)]
    assert [choice.text for choice in made.choices] == expected
    assert made.usage is not None
    assert made.usage.completion_tokens == 15


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"stream": True}, "stream"),
        ({"temperature": 0.5}, "temperature"),
        ({"stop": "x"}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"confidence": True}, "confidence"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"response_format": FORMAT}, "form of the answer"),
        ({"tools": [CLOCK], "tool_choice": "required"}, "form of the answer"),
        ({"n": 3, "best_of": 2}, "raise best_of"),
        ({"use_beam_search": False, "best_of": 2}, "best_of needs use_beam_search"),
        ({"use_beam_search": None, "length_penalty": 1.0}, "length_penalty needs use_beam_search"),
    ],
)
def test_what_does_not_go_with_beams_is_refused(post: Post, fields: dict[str, Any], name: str) -> None:
    error = error_of(post("hi", **{"use_beam_search": True, "n": 2, **fields}), 400)
    assert name in error["message"]


def test_responses_have_no_beams(http: httpx.Client) -> None:
    error = error_of(http.post("/v1/responses", json={"input": "hi", "use_beam_search": True}), 400)
    assert (error["param"], error["code"]) == ("use_beam_search", "unsupported_field")
