"""What others send: the official OpenAI client, a request of vLLM's documentation, and a fuzzer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from internvl import ChatModel
from internvl.engine.settings import EngineSettings
from internvl.serving.app import make_app
from internvl.serving.settings import Settings
from tests.serving.conftest import data_url, encoded, picture, serving

PHOTO = data_url(encoded(picture(112, 56)))


class Animal(BaseModel):
    name: Literal["cat", "dog"]
    is_old: bool


def asked(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts) or "hi"}]


def shown(url: str = PHOTO) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def test_chat(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            *asked(shown(), {"type": "text", "text": "what?"}),
        ],
        max_completion_tokens=5,
        temperature=0.8,
        top_p=0.9,
        seed=1,
        n=2,
        stop=["\n\n"],
        logprobs=True,
        top_logprobs=2,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"5": -1},
        user="somebody",
    )
    assert len(made.choices) == 2
    assert made.model == "tiny"
    assert made.usage is not None
    assert made.usage.prompt_tokens_details is not None
    assert made.usage.prompt_tokens_details.cached_tokens is not None
    assert made.usage.model_extra == {
        "images": [{"width": 112, "height": 56, "grid": [2, 1], "tiles": 3, "tokens": 12}]
    }
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2] * len(logprobs.content)
    assert all(entry.logprob <= 0 for entry in logprobs.content)


def test_stream(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=asked(shown()),
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_an_answer_is_parsed_into_a_class(client: OpenAI) -> None:
    made = client.chat.completions.parse(
        model="tiny", messages=asked(), max_tokens=100, response_format=Animal
    )
    assert isinstance(made.choices[0].message.parsed, Animal)


def test_errors_are_the_clients_own(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="unsupported field 'verbosity'") as caught:
        client.chat.completions.create(
            model="tiny",
            messages=asked(),
            verbosity="low",
        )
    assert caught.value.param == "verbosity"
    assert caught.value.code == "unsupported_field"
    with pytest.raises(NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt", messages=asked())


def test_files(client: OpenAI) -> None:
    made = client.files.create(file=("a.png", encoded(picture(20, 20))), purpose="vision")
    assert client.files.retrieve(made.id).filename == "a.png"
    assert made.id in [one.id for one in client.files.list(purpose="vision")]
    answer = client.chat.completions.create(model="tiny", messages=asked(shown(made.id)), max_tokens=2)
    assert answer.usage is not None
    assert client.files.delete(made.id).deleted


def test_a_request_of_vllms_documentation_is_answered_unchanged(model: ChatModel) -> None:
    """Online serving of several pictures in vLLM's multimodal guide, with addresses this machine has."""
    name = "OpenGVLab/InternVL2_5-1B"
    with serving(make_app(model, Settings(served_names=(name,)))) as address:
        client = OpenAI(api_key="EMPTY", base_url=f"{address}/v1")
        chat_response = client.chat.completions.create(
            model=name,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What are the animals in these images?"},
                        {"type": "image_url", "image_url": {"url": PHOTO}},
                        {"type": "image_url", "image_url": {"url": PHOTO}},
                    ],
                }
            ],
            max_tokens=4,
            extra_body={"top_k": 20, "mm_processor_kwargs": {"max_dynamic_patch": 4}},
        )
        client.close()
    assert chat_response.choices[0].message.content is not None


@pytest.fixture(scope="module")
def short(model: ChatModel) -> Iterator[str]:
    """A server whose answers are short."""
    with serving(
        make_app(model, Settings(default_new_tokens=2, engine=EngineSettings(max_model_len=400)))
    ) as address:
        yield address


def fuzz(operation: schemathesis.APIOperation, mode: GenerationMode) -> set[int]:
    """Statuses of what the operation answers to made-up requests; fails at the first server error."""
    statuses: set[int] = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
    def check(case: schemathesis.Case) -> None:
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=[not_a_server_error])

    with suppress(Unsatisfiable):  # an operation without parameters has no wrong ones
        check()
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_nothing_a_fuzzer_sends_is_the_servers_fault(short: str, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{short}/openapi.json").get_all_operations()
    found = [fuzz(operation.ok(), mode) for operation in described]
    assert len(found) > 15
    assert all(max(statuses, default=0) < 500 for statuses in found)


def test_the_description_names_every_route(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    paths = set(described["paths"])
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/files", "/v1/batches", "/tokenize"} <= paths
    fields = described["components"]["schemas"]["ChatRequest"]
    assert fields["additionalProperties"] is False
