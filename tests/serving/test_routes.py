"""The routes beside chat completions."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

import httpx
import pytest

from internvl import ChatModel
from internvl.processing.tokenizer import Tokenizer
from internvl.serving.media import find_medium
from tests.serving.conftest import JSON, Post, encoded, error_of, image_part, picture


def test_models(http: httpx.Client) -> None:
    found = http.get("/v1/models").json()["data"]
    assert [one["id"] for one in found] == ["tiny", "tiny-too"]
    assert found[0]["max_model_len"] == 2048
    assert http.get("/v1/models/tiny-too").json()["id"] == "tiny-too"
    assert error_of(http.get("/v1/models/none"), 404)["code"] == "model_not_found"


def test_tokens_there_and_back(http: httpx.Client, model: ChatModel) -> None:
    made = http.post("/tokenize", json={"prompt": "héllo", "return_token_strs": True}).json()
    assert made["tokens"] == model.processor.tokenizer.encode("héllo").ids
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert http.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": "héllo"}
    assert error_of(http.post("/detokenize", json={"tokens": [10**6]}), 400)["param"] == "tokens"
    assert error_of(http.post("/tokenize", json={}), 400)["code"] == "invalid_value"


def test_tokens_of_long_texts_keep_nobody_waiting(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where all connections are served."""
    blocking: list[str] = []

    def watch(name: str) -> None:
        work = getattr(Tokenizer, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with suppress(RuntimeError):  # there is no loop in this thread
                asyncio.get_running_loop()
                blocking.append(name)
            return work(*args, **kwargs)

        monkeypatch.setattr(Tokenizer, name, watched)

    for name in ("encode", "decode", "least"):
        watch(name)
    made = http.post("/tokenize", json={"prompt": "a" * 3000, "return_token_strs": True}).json()
    assert made["count"] == 3000
    http.post("/detokenize", json={"tokens": made["tokens"][:2000]})
    assert blocking == []


def test_content_in_requests_is_decoded_in_threads(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        with suppress(RuntimeError):  # there is no loop in this thread
            asyncio.get_running_loop()
            found.append("where all connections are served")
        found.append("read")
        return find_medium(*args, **kwargs)

    monkeypatch.setattr("internvl.serving.prepare.find_medium", watched)
    content = [image_part(encoded(picture(20, 20)))]
    body = {"messages": [{"role": "user", "content": content}]}
    assert http.post("/explain", json=body).status_code == 200
    assert found == ["read"]


@pytest.mark.parametrize("letter", ["a", " ", "\n"])
def test_what_no_context_holds_has_no_tokens(http: httpx.Client, letter: str) -> None:
    error = error_of(http.post("/tokenize", json={"prompt": letter * 1_000_000}), 400)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert re.search(r"at least \d+ tokens and .* 2048 positions", error["message"])
    error = error_of(http.post("/detokenize", json={"tokens": [1] * 2049}), 400)
    assert (error["param"], error["code"]) == ("tokens", "context_length_exceeded")
    assert "2049 ids" in error["message"]


def test_explain_tells_what_an_answer_would_take(http: httpx.Client, post: Post) -> None:
    content = [image_part(encoded(picture(112, 56))), {"type": "text", "text": "what?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    told = http.post("/explain", json=body).json()
    used = post(content).json()["usage"]
    assert told["prompt_tokens"] == used["prompt_tokens"] == len(told["ids"])
    assert told["pictures"] == used["images"]
    assert told["image_tokens"] == 12
    assert told["max_new_tokens"] == 4
    assert "what?" in told["prompt"]
    assert told["cache_bytes"] > 0


def test_health_and_metrics(http: httpx.Client, post: Post) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    content = [image_part(encoded(picture(112, 56, 77)))]
    before = numbers(http)
    assert post(content).status_code == 200
    error_of(post([image_part(b"junk")]), 400)
    after = numbers(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('internvl:generation_tokens_total{model_name="tiny"}') == 4
    assert grown('internvl:vision_tiles_total{model_name="tiny"}') == 3
    assert grown('internvl:image_tokens_total{model_name="tiny"}') == 12
    assert grown('internvl:vision_seconds_total{model_name="tiny"}') > 0
    assert grown('internvl:time_to_first_token_seconds_count{model_name="tiny"}') == 1
    assert grown('internvl:inter_token_latency_seconds_count{model_name="tiny"}') == 3
    assert grown('internvl:e2e_request_latency_seconds_count{model_name="tiny"}') == 1
    assert grown('internvl:request_success_total{finished_reason="length",model_name="tiny"}') == 1
    assert grown('internvl:rejected_media_total{model_name="tiny",reason="invalid_image"}') == 1
    assert after['internvl:num_requests_running{model_name="tiny"}'] == 0
    assert after['internvl:kv_cache_usage_perc{model_name="tiny"}'] == 0
    assert post([{"type": "text", "text": "another beginning"}, *content]).status_code == 200
    hits = 'internvl:mm_cache_hits_total{model_name="tiny"}'
    assert numbers(http)[hits] == after[hits] + 1


def test_what_prompts_begin_with_is_computed_once(http: httpx.Client, post: Post) -> None:
    content = [
        image_part(encoded(picture(112, 56, 78))),
        {"type": "text", "text": "What is in this picture?"},
    ]
    hits = 'internvl:prefix_cache_hits_total{model_name="tiny"}'
    first, before = post(content).json(), numbers(http)[hits]
    second = post(content).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (
        first["usage"]["prompt_tokens_details"]["cached_tokens"] < cached < second["usage"]["prompt_tokens"]
    )
    assert numbers(http)[hits] == before + cached
    assert second["choices"] == first["choices"]
    assert numbers(http)['internvl:prefix_cache_queries_total{model_name="tiny"}'] > cached


def numbers(http: httpx.Client) -> dict[str, float]:
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405)],
)
def test_wrong_paths_have_error_objects_too(http: httpx.Client, method: str, path: str, status: int) -> None:
    assert error_of(http.request(method, path), status)["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_bodies_that_are_no_request(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer, 400)["message"]


HALF = "\ud800"
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{HALF}"}}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": [{"role": "user", "content": HALF}], "user": HALF, "stop": HALF}, 200, None),
        ({"model": HALF}, 404, "model"),
        ({HALF: 1}, 400, None),
        ({"logit_bias": {HALF: 1}}, 400, "logit_bias"),
        ({"guided_regex": HALF}, 400, "guided_regex"),
        ({"guided_choice": [HALF]}, 400, "guided_choice[0]"),
        ({"guided_json": {"enum": [HALF]}}, 400, None),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages[0].content[0].image_url"),
    ],
)
def test_half_surrogate_pairs_are_no_fault_of_the_server(
    http: httpx.Client, fields: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **fields}
    answer = http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert error_of(answer, status)["param"] == param


@pytest.mark.parametrize("purpose", ["", "nothing", "x" * 1000])
def test_purposes_of_files_are_known(http: httpx.Client, purpose: str) -> None:
    answer = http.post("/v1/files", files={"file": ("a", b"x")}, data={"purpose": purpose})
    assert error_of(answer, 400)["message"]


@pytest.mark.parametrize("id", ["file-1", "file-" + "0" * 32])
def test_files_that_are_not_there(http: httpx.Client, id: str) -> None:
    for answer in (http.get(f"/v1/files/{id}"), http.delete(f"/v1/files/{id}")):
        assert error_of(answer, 404)["code"] == "file_not_found"
