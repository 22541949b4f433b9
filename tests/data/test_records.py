"""Rows of every form as conversations."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from internvl.data.caption_questions import CAPTION_QUESTIONS
from internvl.data.records import MAX_ANSWERS, Record, RecordReader
from internvl.errors import InputError
from internvl.processing.conversation import Conversation, Role

ROOT = Path("/pictures")
HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}
BOTH = [HUMAN, GPT]


def frames(source: Any, **options: Any) -> list[str]:
    return [f"{source}#{number}" for number in range(options.get("num_segments") or 2)]


def read(row: Mapping[str, Any], **options: Any) -> Record:
    return RecordReader(root=ROOT, read_video=frames, draw=random.Random(0), **options).read(row)


def texts(conversation: Conversation) -> list[str]:
    return [message.text for message in conversation.messages]


def sources(conversation: Conversation) -> list[str]:
    return [str(picture.source) for picture in conversation.pictures]


@pytest.mark.parametrize(
    ("row", "said", "pictures"),
    [
        ({"conversations": BOTH}, ["What?", "A dog."], []),
        ({"conversations": BOTH, "image": ""}, ["What?", "A dog."], []),
        ({"image": "a.jpg", "conversations": BOTH}, ["<image>\nWhat?", "A dog."], ["/pictures/a.jpg"]),
        ({"image": ["/b.jpg"], "conversations": BOTH}, ["<image>\nWhat?", "A dog."], ["/b.jpg"]),
        (
            {"images": ["a", "b"], "conversations": [{"from": "human", "value": "<image> or <image>?"}, GPT]},
            ["<image> or <image>?", "A dog."],
            ["/pictures/a", "/pictures/b"],
        ),
        (
            {"video": "v.mp4", "conversations": BOTH},
            ["Frame-1: <image>\nFrame-2: <image>\nWhat?", "A dog."],
            ["/pictures/v.mp4#0", "/pictures/v.mp4#1"],
        ),
        (
            {"video": "v.mp4", "conversations": [{"from": "human", "value": "See <video>\nNow?"}, GPT]},
            ["See Frame-1: <image>\nFrame-2: <image>\nNow?", "A dog."],
            ["/pictures/v.mp4#0", "/pictures/v.mp4#1"],
        ),
        (
            {"image": "a", "conversations": [HUMAN, GPT, {"from": "human", "value": "And <image>?"}, GPT]},
            ["What?", "A dog.", "And <image>?", "A dog."],
            ["/pictures/a"],
        ),
        ({"image": {"bytes": b"x", "path": "n"}, "question": "Q", "answer": 3}, ["<image>\nQ", "3"],
         ["b'x'"]),
        ({"image": {"bytes": None, "path": "n"}, "caption": "C", "question": "Q"}, ["<image>\nQ", "C"],
         ["/pictures/n"]),
        ({"messages": [{"role": "user", "content": "<image> hi"}, {"role": "assistant", "content": "ho"}],
          "images": ["a"]}, ["<image> hi", "ho"], ["/pictures/a"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]},
                       {"role": "assistant", "content": [{"type": "text", "text": "<image>"}]}],
          "images": ["a"]}, ["<image>\nhi", "<image>"], ["/pictures/a"]),
    ],
)  # fmt: skip
def test_one_conversation(row: Mapping[str, Any], said: list[str], pictures: list[str]) -> None:
    record = read(row)
    (conversation,) = record.conversations
    assert texts(conversation) == said
    assert sources(conversation) == pictures
    assert record.references == (None,)


def test_a_mark_in_an_answer_is_text() -> None:
    row = {"image": "a", "conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]}
    (conversation,) = read(row).conversations
    assert texts(conversation) == ["<image>\nWhat?", "<image>"]
    assert len(conversation.pictures) == 1


def test_messages_with_every_kind_of_part() -> None:
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image", "image": "a.jpg", "max_tiles": 2},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "video", "video": "v.mp4", "num_segments": 3},
    ]
    row = {
        "messages": [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": "Same."},
        ]
    }
    (conversation,) = read(row).conversations
    assert conversation.system == "Short."
    assert sources(conversation) == [
        "/pictures/a.jpg",
        "data:image/png;base64,AA",
        *(f"/pictures/v.mp4#{k}" for k in range(3)),
    ]
    assert conversation.pictures[0].choice is not None
    assert conversation.pictures[0].choice.max_tiles == 2


def test_system_turn() -> None:
    record = read({"conversations": [{"from": "system", "value": "Short."}, *BOTH]})
    assert record.conversations[0].system == "Short."
    assert record.kind == "conversation"


def test_captions_by_language() -> None:
    row = {"id": "7", "image": "a", "en": ["One.", "Two."], "zh": ["一。"]}
    both = read(row)
    assert both.kind == "answers"
    assert [one.messages[1].text for one in both.conversations] == ["One.", "Two.", "一。"]
    asked = [one.messages[0].text.removeprefix("<image>\n") for one in both.conversations]
    assert asked[0] == asked[1]
    assert asked[0] in CAPTION_QUESTIONS["en"]
    assert asked[2] in CAPTION_QUESTIONS["zh"]
    assert len(read(row, language="zh").conversations) == 1
    with pytest.raises(InputError, match="captions in 'fr'"):
        read(row, language="fr")


@pytest.mark.parametrize(
    "beside",
    [{"hw": [480, 640]}, {"ts": 1700000000}, {"no": "12"}, {"id": "7"}, {"it": ["", None]}, {"de": [3]}],
)
def test_not_every_key_of_two_letters_is_a_language(beside: dict[str, Any]) -> None:
    record = read({"image": "a", "text": "A dog on a lawn.", **beside})
    assert [one.messages[1].text for one in record.conversations] == ["A dog on a lawn."]


def test_text_without_a_picture_has_no_captions() -> None:
    record = read({"text": "A long document.", "en": "A title."})
    assert record.kind == "raw"
    assert texts(record.conversations[0]) == ["A long document."]


def test_questions_of_the_run_replace_the_built_in_ones() -> None:
    record = read({"image": "a", "captions": ["One."]}, questions=("Why?",))
    assert texts(record.conversations[0]) == ["<image>\nWhy?", "One."]


def test_answers_and_pairs_share_the_picture() -> None:
    record = read({"image": "a", "question": "Q?", "answers": ["1", "2"], "system": "S"})
    assert [texts(one) for one in record.conversations] == [["<image>\nQ?", "1"], ["<image>\nQ?", "2"]]
    assert {one.system for one in record.conversations} == {"S"}
    record = read({"image": "a", "pairs": [["Q", "1"], {"question": "R", "answer": 2}]})
    assert [texts(one) for one in record.conversations] == [["<image>\nQ", "1"], ["<image>\nR", "2"]]


def test_preference() -> None:
    row = {"image": "a", "question": "Q", "chosen": "yes", "rejected": "no"}
    record = read(row)
    assert record.kind == "preference"
    assert [texts(one)[1] for one in record.conversations] == ["yes", "no"]
    assert record.references == (None, None)
    stored = read(row | {"ref_chosen_logps": -1.5, "ref_rejected_logps": "-2"})
    assert stored.references == (-1.5, -2.0)


def test_text_that_is_learnt_whole() -> None:
    assert read({"text": "All of it."}).kind == "raw"
    record = read({"conversations": [{"from": "pretrain", "value": "All <image> of it."}], "image": "a"})
    assert record.kind == "raw"
    assert record.conversations[0].messages[0].role is Role.USER
    assert sources(record.conversations[0]) == ["/pictures/a"]
    assert read({"image": "a", "text": "A dog."}).kind == "answers"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "nothing to learn"),
        ({"image": "a"}, "nothing to learn in the keys 'image'"),
        ({"question": "Q", "answer": ""}, "question without an answer in the keys 'question', 'answer'"),
        ({"file": "a.jpg", "question": "Q", "answer": "A"}, "no picture is read from the key 'file'"),
        ({"image_path": "a.PNG", "conversations": BOTH}, "'image_path' .*a.PNG.* name it 'image'"),
        ({"messages": [{"role": "user", "content": "Q"}], "pictures": ["a.jpg"]}, "the key 'pictures'"),
        ({"image": "a", "answer": "A"}, "answer without a question"),
        ({"conversations": "x"}, "list that is not empty"),
        ({"conversations": [1]}, "turn 0 needs"),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 0 needs"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown speaker 'robot'"),
        ({"conversations": [HUMAN, {"from": "system", "value": "x"}]}, "unknown speaker 'system'"),
        ({"conversations": [GPT], "image": "a"}, "0 <image> marks in the user's turns, but 1"),
        ({"conversations": BOTH, "image": ["a", "b"]}, "0 <image> marks in the user's turns, but 2"),
        ({"conversations": [{"from": "human", "value": "<image>"}, GPT]}, "1 <image> marks .* but 0"),
        ({"conversations": [{"from": "human", "value": "<video>"}, GPT]}, "1 <video> marks .* but 0"),
        ({"conversations": BOTH, "video": ["a", "b"]}, "2 videos"),
        ({"conversations": BOTH, "image": 3}, "is a path, bytes"),
        ({"conversations": BOTH, "image": "s3://bucket/a"}, "not on this machine"),
        ({"conversations": BOTH, "image": "httpfs://bucket/a"}, "not on this machine"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown speaker 'tool'"),
        ({"messages": 3}, "messages must be a list"),
        ({"messages": []}, "messages must be a list that is not empty"),
        ({"conversations": []}, "conversations must be a list that is not empty"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "unknown type 'audio'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "images": ["a"]},
            "1 pictures of the row have no part",
        ),
        ({"messages": [], "chosen": "a"}, "a preference has a question"),
        ({"question": "Q", "chosen": "a"}, "needs question, chosen and rejected"),
        ({"question": "Q", "chosen": "a", "rejected": "a"}, "the same answer"),
        ({"question": "Q", "chosen": "a", "rejected": "b", "ref_chosen_logps": -1}, "belong together"),
        (
            {"question": "Q", "chosen": "a", "rejected": "b", "ref_chosen_logps": "x"},
            "must be a number",
        ),
        ({"pairs": [["q"]]}, "pairs\\[0\\] must be"),
        ({"pairs": [["q", None]]}, "pairs\\[0\\]\\[1\\] must be text"),
        ({"question": "Q", "answers": [["x"]]}, "answers must be text"),
        ({"question": "Q", "answers": ["x"] * (MAX_ANSWERS + 1)}, f"{MAX_ANSWERS + 1} answers"),
    ],
)
def test_what_is_wrong_is_said(row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(row)
