"""Requests as values: what is refused, and what the library is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from internvl.errors import InputError, RequestError
from internvl.generation.result import TokenLogprob
from internvl.processing.tokenizer import Tokenizer, load_tokenizer
from internvl.serving.answering import spell
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_completions import CompletionRequest, text_logprobs
from internvl.serving.protocol_embeddings import EmbeddingRequest
from internvl.serving.protocol_messages import MediaReference, as_messages, find_media
from internvl.serving.protocol_replies import logprobs_object
from internvl.serving.protocol_responses import ResponseRequest
from internvl.serving.protocol_tokens import DetokenizeRequest, TokenizeRequest
from internvl.serving.refusals import as_request_error
from internvl.serving.routes_batches import BatchRequest
from tests.processing import tiny_tokenizers as tiny

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


def says(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


MANY = 100_000
UNKNOWN = {f"field{number}": 0 for number in range(MANY)}
TEXT = {"type": "text", "text": ""}
BATCH = {"input_file_id": "a", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("kind", "body", "place"),
    [
        (ChatRequest, says([0] * MANY), "messages[0].content[0]"),
        (ChatRequest, says([0] * MANY, "system"), "messages[0].content[0]"),
        (ChatRequest, says([TEXT, *[{}] * MANY], "assistant"), "messages[0].content[1].type"),
        (ChatRequest, says([{"type": "tex"}] * MANY, "tool"), "messages[0].content[0].type"),
        (ChatRequest, says([TEXT] * MANY), "messages[0].content"),
        (ChatRequest, {"messages": [0] * MANY}, "messages[0]"),
        (ChatRequest, {**says("hi"), **UNKNOWN}, "field0"),
        (ChatRequest, {"messages": [{"role": "user", "content": "hi", **UNKNOWN}]}, "messages[0].field0"),
        (ChatRequest, {**says("hi"), "logit_bias": UNKNOWN}, "logit_bias"),
        (ChatRequest, {**says("hi"), "logit_bias": dict.fromkeys(UNKNOWN, "")}, "logit_bias"),
        (ChatRequest, {**says("hi"), "stop": [0] * MANY}, "stop[0]"),
        (ChatRequest, {**says("hi"), "tools": [0] * MANY}, "tools[0]"),
        (ChatRequest, {**says("hi"), "guided_choice": [0] * MANY}, "guided_choice[0]"),
        (ResponseRequest, {"input": [{"role": "user", "content": [0] * MANY}]}, "input[0].content[0]"),
        (ResponseRequest, {"input": [0] * MANY}, "input[0]"),
        (
            ResponseRequest,
            {"input": [{"type": "function_call_output", "call_id": "a", "output": [0] * MANY}]},
            "input[0].output[0]",
        ),
        (CompletionRequest, {"prompt": [""] * MANY}, "prompt[0]"),
        (CompletionRequest, {"prompt": [-1] * MANY}, "prompt[0]"),
        (CompletionRequest, {"prompt": [[""] * MANY] * 2}, "prompt[0][0]"),
        (EmbeddingRequest, {"input": [0] * MANY}, "input[0]"),
        (DetokenizeRequest, {"tokens": [""] * MANY}, "tokens[0]"),
        (TokenizeRequest, {"messages": [0] * MANY}, "messages[0]"),
        (BatchRequest, {**BATCH, "metadata": dict.fromkeys(UNKNOWN, 0)}, "metadata"),
    ],
)
def test_however_much_is_wrong_there_are_few_errors(
    kind: type[BaseModel], body: dict[str, Any], place: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 20
    assert as_request_error(caught.value.errors()).param == place


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


@pytest.fixture(scope="module", params=[tiny.qwen2, tiny.internlm2])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


def entry(tokenizer: Tokenizer, id: int) -> TokenLogprob:
    """The id with all parts of characters as its rivals, best first."""
    rivals = [id for id in range(tokenizer.size) if is_part(tokenizer.token_bytes(id))]
    return TokenLogprob(id=id, logprob=-0.5, top=tuple((id, -float(rank)) for rank, id in enumerate(rivals)))


def is_part(content: bytes) -> bool:
    return "\ufffd" in content.decode(errors="replace")


def test_bytes_of_tokens_join_to_characters(tokenizer: Tokenizer) -> None:
    text = "a\u0117\U0001f43c!"
    ids = tokenizer.encode(text, bos=False, eos=False).ids
    assert len(ids) > len(text)
    entries = [entry(tokenizer, id) for id in ids]
    found = logprobs_object(entries, 3, lambda id: spell(tokenizer, id), tokenizer.token_bytes)["content"]
    assert bytes(byte for token in found for byte in token["bytes"]).decode() == text
    rivals = [bytes(token["bytes"]) for token in found[0]["top_logprobs"]]
    assert rivals == [tokenizer.token_bytes(id) for id, _ in entries[0].top[:3]]


def test_parts_of_characters_have_names_and_places_of_their_own(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("\u0117", bos=False, eos=False).ids, *tokenizer.encode("\ufffd", bos=False).ids]
    entries = [entry(tokenizer, id) for id in ids]
    starts = list(range(len(ids)))
    found = text_logprobs(entries, 50, lambda id: spell(tokenizer, id), starts, tokenizer.token_bytes)
    assert found["tokens"][:2] == ["bytes:\\xc4", "bytes:\\x97"]
    assert found["text_offset"] == starts
    for top in found["top_logprobs"]:
        assert len(top) == 50
        assert list(top.values()) == [-float(rank) for rank in range(50)]


def test_names_of_mixed_tokens_and_of_the_replacement_character() -> None:
    words = {1: b" \xf0\x9f", 2: "\ufffd".encode(), 3: b"a", 4: b"a"}
    top = ((1, -0.1), (2, -0.2), (3, -0.3), (4, -0.4))
    entries = [TokenLogprob(id=3, logprob=-0.3, top=top)]
    found = text_logprobs(entries, 4, lambda id: words[id].decode(errors="replace"), [5], words.__getitem__)
    assert found["top_logprobs"] == [{"bytes: \\xf0\\x9f": -0.1, "\ufffd": -0.2, "a": -0.3}]
    assert found["text_offset"] == [5]
