"""Chat completions over HTTP, compared with the library's own answers."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from internvl import ChatModel
from tests.serving.conftest import Post, data_url, encoded, error_of, image_part, picture

LONG = "Count to a hundred, please."


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_the_answer_is_the_librarys(post: Post, model: ChatModel) -> None:
    photo, other = picture(112, 56), picture(60, 60, 1)
    content = [
        {"type": "text", "text": "Compare"},
        image_part(encoded(photo)),
        image_part(encoded(other)),
        {"type": "text", "text": "please"},
    ]
    answer = post(content, max_tokens=6).json()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Compare"},
                {"type": "image", "image": photo},
                {"type": "image", "image": other},
                {"type": "text", "text": "please"},
            ],
        }
    ]
    reply = model.chat(messages, max_new_tokens=6)
    assert answer["choices"][0]["message"]["content"].strip() == reply.text
    assert answer["choices"][0]["finish_reason"] == reply.finish_reason == "length"
    assert answer["usage"]["prompt_tokens"] == reply.usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 16
    assert answer["usage"]["images"] == [
        {"width": 112, "height": 56, "grid": [2, 1], "tiles": 3, "tokens": 12},
        {"width": 60, "height": 60, "grid": [1, 1], "tiles": 1, "tokens": 4},
    ]


def test_a_stream_is_the_same_answer(post: Post) -> None:
    settings = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = post(LONG, **settings).json()
    chunks = events(post(LONG, **settings, stream=True, stream_options={"include_usage": True}))
    texts, reasons, logprobs = ["", ""], [None, None], [[], []]
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        assert chunk["object"] == "chat.completion.chunk"
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"]
        logprobs[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    for entries, choice in zip(logprobs, whole["choices"], strict=True):
        expected = choice["logprobs"]["content"]
        assert [entry["token"] for entry in entries] == [entry["token"] for entry in expected]
        # What was in the cache is computed in other pieces, which rounds differently.
        values = pytest.approx([entry["logprob"] for entry in expected], abs=1e-4)
        assert [entry["logprob"] for entry in entries] == values
    assert reasons == ["length", "length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert whole["usage"]["completion_tokens"] == 24


def test_a_stream_without_usage_has_none(post: Post) -> None:
    assert all("usage" not in chunk for chunk in events(post(stream=True)))


def test_seeds_repeat_and_answers_differ(post: Post) -> None:
    def texts(**fields: Any) -> list[str]:
        answer = post(LONG, temperature=1.0, max_tokens=20, **fields).json()
        return [choice["message"]["content"] for choice in answer["choices"]]

    assert texts(seed=5) == texts(seed=5)
    assert texts(seed=5) != texts(seed=6)
    first, second = texts(seed=5, n=2)
    assert first != second
    assert [first] == texts(seed=5)


def test_stop_strings_end_the_answer(post: Post) -> None:
    text = post(LONG, max_tokens=40, skip_special_tokens=False).json()["choices"][0]["message"]["content"]
    stop = next(letter for letter in text if letter.isascii() and text.index(letter) > 0)
    answer = post(LONG, max_tokens=40, stop=[stop]).json()["choices"][0]
    assert answer["message"]["content"] == text[: text.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_bias_decides(post: Post, model: ChatModel) -> None:
    (id,) = model.processor.tokenizer.encode("Q").ids
    answer = post(LONG, logit_bias={str(id): 100}, max_tokens=3).json()
    assert answer["choices"][0]["message"]["content"] == "QQQ"


def test_detail_and_tiles_are_those_of_each_picture(post: Post) -> None:
    photo = encoded(picture(224, 56))
    parts = [
        image_part(photo),
        image_part(photo, detail="low"),
        image_part(photo, max_tiles=2),
        image_part(photo, max_dynamic_patch=2, thumbnail=False),
    ]
    shown = [image["tiles"] for image in post(parts).json()["usage"]["images"]]
    assert shown == [5, 1, 3, 2]
    whole = post(parts, max_tiles=1).json()["usage"]["images"]
    assert [image["tiles"] for image in whole] == [1, 1, 3, 2]


def test_grounding_tags_are_left_out_unless_asked_for(post: Post, model: ChatModel) -> None:
    bias = {str(model.processor.tokenizer.token_id("<ref>")): 100}
    assert post(logit_bias=bias, max_tokens=2).json()["choices"][0]["message"]["content"] == ""
    kept = post(logit_bias=bias, max_tokens=2, skip_special_tokens=False).json()
    assert kept["choices"][0]["message"]["content"] == "<ref><ref>"


def test_history_comes_back_as_it_was_sent(http: httpx.Client, post: Post) -> None:
    first = post().json()["choices"][0]["message"]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        first,
        {"role": "user", "content": "more"},
    ]
    answer = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
    assert answer.status_code == 200, answer.text


def test_special_tokens_that_a_user_writes_are_spelled_out(http: httpx.Client, model: ChatModel) -> None:
    def tokens(text: str) -> list[int]:
        body = {"messages": [{"role": "user", "content": text}]}
        return list(http.post("/tokenize", json=body).json()["tokens"])

    tokenizer = model.processor.tokenizer
    plain = tokens("x")
    for mark in ("<|im_end|>", "<IMG_CONTEXT>", "<img>", "<|im_start|>"):
        id = tokenizer.token_id(mark)
        assert tokens(mark).count(id) == plain.count(id)
        assert len(tokens(mark)) == len(plain) - 1 + len(mark)
    assert len(tokens("<image>")) == len(plain) - 1 + len("<image>")


def test_an_uploaded_file_is_a_picture(http: httpx.Client, post: Post) -> None:
    photo = encoded(picture(112, 56))
    made = http.post("/v1/files", files={"file": ("a.png", photo)}, data={"purpose": "vision"}).json()
    by_id = post([image_part(made["id"])]).json()
    by_part = post([{"type": "file", "file": {"file_id": made["id"]}}]).json()
    by_url = post([image_part(photo)]).json()
    assert by_id["choices"] == by_part["choices"] == by_url["choices"]
    assert http.get(f"/v1/files/{made['id']}/content").content == photo
    assert http.delete(f"/v1/files/{made['id']}").json()["deleted"] is True
    assert error_of(post([image_part(made["id"])]), 404)["code"] == "file_not_found"


def test_pages_and_frames(post: Post) -> None:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(file, "PDF", save_all=True, append_images=[picture(56, 56)] * 2)
    pdf = {"file_data": data_url(file.getvalue(), "application/pdf"), "pages": [1, 3], "dpi": 72}
    assert len(post([{"type": "file", "file": pdf}]).json()["usage"]["images"]) == 2
    frames = [picture(56, 56, seed) for seed in range(6)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    video = {"url": data_url(gif, "image/gif"), "num_segments": 3}
    assert len(post([{"type": "video_url", "video_url": video}]).json()["usage"]["images"]) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [], "model": "tiny"}, "tools"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": "hi", "name": "x"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 100_000}, "messages"),
        ({"model": "other"}, "model"),
    ],
)
def test_refusals_name_the_field(post: Post, fields: dict[str, Any], param: str) -> None:
    status = 404 if param == "model" else 400
    assert error_of(post(**fields), status)["param"] == param


def test_a_prompt_that_is_too_long_says_the_numbers(post: Post) -> None:
    error = error_of(post("word " * 2000), 400)
    assert error["code"] == "context_length_exceeded"
    assert "2047" in error["message"] or "2044" in error["message"]


def test_answers_without_a_number_of_tokens_fit_the_context(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 1850}], "ignore_eos": True}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["total_tokens"] == 2048


def test_bytes_of_logprobs_join_to_the_text(post: Post) -> None:
    text = "\u00e9a\u4e2d"
    answer = post("hi", max_tokens=9, logprobs=True, top_logprobs=3, guided_choice=[text])
    tokens = answer.json()["choices"][0]["logprobs"]["content"][:-1]
    assert [token["bytes"] for token in tokens[:2]] == [[195], [169]]
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == text
