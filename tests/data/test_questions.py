"""What is asked of a record: chat's own prompts, and every right answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl.data.caption_questions import CAPTION_QUESTIONS
from internvl.data.questions import Question, find_questions
from internvl.data.records import RecordReader
from internvl.errors import InputError
from internvl.processing.tiling import TileChoice


def frames(source: Any, **options: Any) -> list[str]:
    return ["frame 1", "frame 2"]


def ask(
    row: dict[str, Any], max_tiles: int | None = None, **options: Any
) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.text, one.references) for one in questions(row, max_tiles, **options)]


def questions(row: dict[str, Any], max_tiles: int | None = None, **options: Any) -> tuple[Question, ...]:
    reader = RecordReader(root=Path("root"), read_video=frames, draw=None, **options)
    return find_questions(reader.read(row), max_tiles)


def test_answers_to_one_question_are_together() -> None:
    pairs = [["How many?", "two"], ["Where?", "here"], ["How many?", " 2 "]]
    assert ask({"image": "a.png", "pairs": pairs}) == [
        ("<image>\nHow many?", ("two", "2")),
        ("<image>\nWhere?", ("here",)),
    ]


def test_captions_are_asked_for_by_the_first_question_of_their_language() -> None:
    row = {"image": "a.png", "en": ["a dog", "one dog"], "zh": ["狗"]}
    english, chinese = (f"<image>\n{CAPTION_QUESTIONS[name][0]}" for name in ("en", "zh"))
    assert ask(row) == [(english, ("a dog", "one dog")), (chinese, ("狗",))]
    assert ask(row, language="zh") == [(chinese, ("狗",))]


def test_every_answer_of_a_conversation_is_asked_for_after_what_was_said() -> None:
    turns = [("system", "Be brief."), ("human", "One?"), ("gpt", "1"), ("human", "Two?"), ("gpt", "2")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    first, second = questions(row)
    assert [message.text for message in first.conversation.messages] == ["One?"]
    assert [message.text for message in second.conversation.messages] == ["One?", "1", "Two?"]
    assert (first.references, second.references) == (("1",), ("2",))
    assert first.conversation.system == second.conversation.system == "Be brief."


def test_of_a_preference_the_chosen_answer_is_right() -> None:
    row = {"question": "Why?", "chosen": "Because.", "rejected": "No."}
    assert ask(row) == [("Why?", ("Because.",))]


def test_the_limit_of_a_data_set_holds_for_its_pictures_but_not_for_frames() -> None:
    row = {"image": "a.png", "video": "b.mp4", "question": "<image><video>Which?", "answer": "a"}
    (one,) = questions(row, 3)
    choices = [picture.choice for picture in one.conversation.pictures]
    assert choices == [TileChoice(max_tiles=3), TileChoice(max_tiles=1), TileChoice(max_tiles=1)]
    (free,) = questions(row)
    assert free.conversation.pictures[0].choice is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "learnt whole"}, "asks nothing"),
        ({"conversations": [{"from": "gpt", "value": "Hello."}]}, "no question"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": " "}]}, "'Q' is empty"),
        ({"image": "a.png", "question": "Q"}, "a question without an answer"),
    ],
)
def test_records_that_ask_nothing(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(row)
