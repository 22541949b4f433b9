"""Requests as values: what is refused, and what the library is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from internvl.errors import InputError, RequestError
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_messages import MediaReference, as_messages, find_media

USER = {"role": "user", "content": "hi"}


def parse(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [USER], **fields})


def test_nothing_given_is_greedy() -> None:
    sampling = parse().sampling((7,), 5, 0)
    assert sampling.is_plain_greedy
    assert (sampling.stop_ids, sampling.max_new_tokens) == ((7,), 5)


def test_every_setting_reaches_the_library() -> None:
    chat = parse(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=0.2, frequency_penalty=0.3,
        repetition_penalty=1.1, logit_bias={"3": -100}, seed=-1, stop="x", stop_token_ids=[9], min_tokens=2,
    )  # fmt: skip
    made = chat.sampling((7,), 5, 3)
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.5, 0.9, 5, 0.1)
    assert (made.presence_penalty, made.frequency_penalty, made.repetition_penalty) == (0.2, 0.3, 1.1)
    assert (made.logit_bias, made.seed, made.stop, made.stop_ids) == ({3: -100}, 2**63 - 1, ("x",), (7, 9))
    assert (made.min_new_tokens, made.max_new_tokens, made.logprobs) == (2, 5, 3)


def test_other_words_for_the_same() -> None:
    assert parse(top_k=-1).sampling((), 5, 0).top_k == 0
    assert parse(ignore_eos=True).sampling((7,), 5, 0).stop_ids == ()
    assert parse(max_tokens=3).new_tokens == 3
    assert parse(max_tokens=3, max_completion_tokens=4).new_tokens == 4
    assert parse(mm_processor_kwargs={"max_dynamic_patch": 3}).options() == {"max_tiles": 3}
    assert parse(logprobs=True).num_logprobs == 1
    assert parse(logprobs=True, top_logprobs=5).num_logprobs == 5
    assert parse().num_logprobs == 0


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"no_such_field": 1}, "no_such_field"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"messages": []}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, ""),
        ({"guided_grammar": "start: A"}, "guided_grammar"),
        ({"structured_outputs": {"grammar": "start: A"}}, "structured_outputs"),
        ({"store": True}, "store"),
        ({"stream_options": {"include_usage": True}}, ""),
        ({"top_logprobs": 2}, ""),
        ({"stream_options": {"include_obfuscation": True}, "stream": True}, "stream_options"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    assert place in "".join(map(str, caught.value.errors()[0]["loc"]))


@pytest.mark.parametrize("key", ["a", "", "-1", "1.5", "٣"])
def test_keys_of_logit_bias_are_ids(key: str) -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        parse(logit_bias={key: 1.0}).sampling((), 5, 0)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match="min_new_tokens 9"):
        parse(min_tokens=9).sampling((), 5, 0)


def test_media_are_found_and_put_back_in_order() -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "one", "detail": "low"}},
        {"type": "video_url", "video_url": {"url": "two", "num_segments": 4, "bound": [1, 2]}},
        {"type": "file", "file": {"file_id": "file-3", "pages": [2], "max_tiles": 2}},
    ]
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": content}]
    chat = parse(messages=messages)
    assert find_media(chat.messages) == [
        MediaReference("image", "one", {}, "messages[1].content[1].image_url"),
        MediaReference(
            "video", "two", {"num_segments": 4, "bound": [1, 2]}, "messages[1].content[2].video_url"
        ),
        MediaReference("file", "file-3", {"pages": [2]}, "messages[1].content[3].file"),
    ]
    assert as_messages(chat.messages, [["A"], ["B", "C"], ["D"]]) == [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "image": "A", "detail": "low"},
                {"type": "video", "video": ["B", "C"], "max_tiles": None},
                {"type": "document", "document": ["D"], "max_tiles": 2},
            ],
        },
    ]


@pytest.mark.parametrize("file", [{}, {"file_id": "file-1", "file_data": "data:,x"}, {"file_url": "x"}])
def test_a_file_has_one_source(file: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(messages=[{"role": "user", "content": [{"type": "file", "file": file}]}])
