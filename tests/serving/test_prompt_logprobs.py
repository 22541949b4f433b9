"""How likely a prompt was, in vLLM's words."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from internvl import ChatModel
from tests.serving.conftest import Post, error_of


def likelihoods(model: ChatModel, ids: list[int]) -> list[float]:
    """Of each token after the first."""
    scores_TV = model.logits(ids).float().log_softmax(-1)
    return [float(scores_TV[place, id]) for place, id in enumerate(ids[1:])]


def values(found: list[dict[str, Any] | None], ids: list[int]) -> list[float]:
    assert found[0] is None
    assert len(found) == len(ids)
    return [entry[str(id)]["logprob"] for entry, id in zip(found[1:], ids[1:], strict=True) if entry]


def test_completions_tell_of_each_prompt(http: httpx.Client, model: ChatModel) -> None:
    prompts = [[5, 80, 7, 9], [66, 67]]
    body = {"prompt": prompts, "max_tokens": 2, "n": 2, "prompt_logprobs": 3}
    choices = http.post("/v1/completions", json=body).json()["choices"]
    assert ["prompt_logprobs" in choice for choice in choices] == [True, False, True, False]
    for choice, ids in zip(choices[::2], prompts, strict=True):
        found = choice["prompt_logprobs"]
        assert values(found, ids) == pytest.approx(likelihoods(model, ids), abs=1e-3)
        assert all({1, 2, 3} <= {one["rank"] for one in entry.values()} for entry in found[1:])


def test_chat_tells_of_its_prompt(post: Post) -> None:
    answer = post("hi", prompt_logprobs=0).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in post("hi").json()
    assert "leave stream out" in error_of(post("hi", prompt_logprobs=1, stream=True), 400)["message"]
