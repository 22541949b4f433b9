"""LMDeploy's call shapes: the same answers as `chat`."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import internvl
from internvl import ChatModel
from internvl.api.pipeline import GenerationConfig, Pipeline, Response
from internvl.errors import InputError
from tests.api.conftest import noise

FEW: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture
def pipe(model: ChatModel) -> Pipeline:
    return internvl.pipeline(model, GenerationConfig(max_new_tokens=6))


def text_of(response: Response | list[Response]) -> str:
    assert isinstance(response, Response)
    return response.text


def test_one_prompt_of_every_shape(pipe: Pipeline, model: ChatModel, photo: Image.Image) -> None:
    other = noise(60, 60, 1)
    assert text_of(pipe("hello")) == model.chat("hello", **FEW).text
    assert text_of(pipe(("what?", photo))) == model.chat("what?", photo, **FEW).text
    assert text_of(pipe(("what?", [photo, other]))) == model.chat("what?", [photo, other], **FEW).text
    marked = model.chat("a <image> b", photo, **FEW).text
    assert text_of(pipe(("a <IMAGE_TOKEN> b", photo))) == marked
    messages = [{"role": "user", "content": [{"type": "image", "image": photo}]}]
    assert text_of(pipe(messages)) == model.chat(messages, **FEW).text


def test_lists_give_lists(pipe: Pipeline, model: ChatModel, photo: Image.Image) -> None:
    messages = [{"role": "user", "content": "hello"}]
    found = pipe(["hello", ("what?", photo), messages])
    assert isinstance(found, list)
    assert [one.index for one in found] == [0, 1, 2]
    assert found[0].text == found[2].text == model.chat("hello", **FEW).text
    assert pipe([]) == []


def test_responses_have_lmdeploys_names(pipe: Pipeline, model: ChatModel) -> None:
    found, reply = pipe("hello"), model.chat("hello", **FEW)
    assert isinstance(found, Response)
    assert found.token_ids == reply.ids
    assert (found.input_token_len, found.generate_token_len) == (
        reply.usage.prompt_tokens,
        reply.usage.new_tokens,
    )
    assert found.finish_reason == reply.finish_reason


def test_pieces_joined_are_the_answer(pipe: Pipeline) -> None:
    pieces = list(pipe.stream_infer(["hello", "x"]))
    for index, prompt in enumerate(["hello", "x"]):
        joined = "".join(piece.text for piece in pieces if piece.index == index)
        assert joined.strip() == text_of(pipe(prompt))
    assert [piece.index for piece in pieces if piece.finish_reason] == [0, 1]


def test_a_session_goes_on(pipe: Pipeline, model: ChatModel, photo: Image.Image) -> None:
    first = pipe.chat(("what?", photo))
    second = pipe.chat("more", session=first)
    reply = model.chat("what?", photo, **FEW)
    assert first.response.text == reply.text
    assert second.response.text == model.chat("more", history=reply.history, **FEW).text
    assert pipe.chat("more", session=first).response.text == second.response.text


def test_settings_are_lmdeploys(model: ChatModel) -> None:
    drawn = GenerationConfig(do_sample=True, random_seed=3, top_k=5, temperature=0.7, stop_words=["x"])
    options = drawn.options((1,))
    assert (options["temperature"], options["top_k"], options["seed"]) == (0.7, 5, 3)
    assert (options["stop"], options["stop_ids"]) == (("x",), (1,))
    assert "temperature" not in GenerationConfig().options((1,))
    assert GenerationConfig(ignore_eos=True, stop_token_ids=[4]).options((1,))["stop_ids"] == (4,)
    assert GenerationConfig(bad_token_ids=[4]).options(())["logit_bias"] == {4: -100.0}
    with internvl.pipeline(model) as pipe:
        found = pipe("hello", max_new_tokens=2)
        assert isinstance(found, Response)
        assert found.generate_token_len <= 2


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("hello", {"max_tokens": 5}, "unknown setting max_tokens"),
        ("hello", {"n": 2}, "n=2"),
        ("hello", {"max_new_tokens": 0}, "max_new_tokens"),
        (("a", "b", "c"), {}, "a pair is"),
        ((1, "b"), {}, "a pair is"),
    ],
)
def test_what_cannot_be(pipe: Pipeline, prompt: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe(prompt, **settings)


def test_only_chat_models_have_pipelines(tmp_path: Any) -> None:
    with pytest.raises(internvl.InternVLError):
        internvl.pipeline(tmp_path / "nothing")
