from __future__ import annotations

from typing import Any

import pytest

from internvl.errors import PromptError
from internvl.processing.conversation import Conversation, Message, Picture, Role, from_prompt, label_frame
from internvl.processing.tiling import TileChoice


def sources(conversation: Conversation) -> list[object]:
    return [picture.source for picture in conversation.pictures]


def question(conversation: Conversation) -> str:
    return conversation.messages[-1].text


def test_marks_take_pictures_in_order() -> None:
    conversation = from_prompt("first <image> then <image>!", ["a", "b"])
    assert question(conversation) == "first <image> then <image>!"
    assert [part if isinstance(part, str) else part.source for part in conversation.messages[0].parts] == [
        "first ",
        "a",
        " then ",
        "b",
        "!",
    ]


def test_one_picture_without_a_mark_goes_in_front() -> None:
    assert question(from_prompt("What?", ["a"])) == "<image>\nWhat?"


def test_several_pictures_without_marks_are_numbered() -> None:
    assert question(from_prompt("What?", ["a", "b"])) == "Image-1: <image>\nImage-2: <image>\nWhat?"


def test_no_picture_changes_nothing() -> None:
    conversation = from_prompt("Hello", system="Be brief.")
    assert (question(conversation), conversation.system, conversation.pictures) == ("Hello", "Be brief.", ())


def test_history_comes_first_and_takes_the_first_pictures() -> None:
    conversation = from_prompt("And <image>?", ["a", "b"], [("See <image>", "I see."), ("Sure?", "Yes.")])
    assert [message.text for message in conversation.messages] == [
        "See <image>",
        "I see.",
        "Sure?",
        "Yes.",
        "And <image>?",
    ]
    assert [message.role for message in conversation.messages[:3]] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert sources(conversation) == ["a", "b"]


def test_pictures_left_over_by_history_go_before_the_question() -> None:
    conversation = from_prompt("And now?", ["a", "b"], [("<image>\nWhat?", "A cat.")])
    assert question(conversation) == "Image-2: <image>\nAnd now?"
    assert sources(conversation) == ["a", "b"]
    assert question(from_prompt("And now?", ["a"], [("Hi", "Hello.")])) == "<image>\nAnd now?"


def test_pictures_of_history_are_enough() -> None:
    assert question(from_prompt("And now?", ["a"], [("<image>\nWhat?", "A cat.")])) == "And now?"


@pytest.mark.parametrize(
    ("text", "pictures", "history", "numbers"),
    [
        ("<image>", [], None, "1 <image> marks in question and history, but 0 pictures"),
        ("<image><image>", ["a"], None, "2 <image> marks in question and history, but 1 pictures"),
        ("<image>", ["a", "b"], None, "1 <image> marks in question and history, but 2 pictures"),
        (
            "What?",
            ["a"],
            [("<image><image>", "x")],
            "2 <image> marks in question and history, but 1 pictures",
        ),
        ("What?", [], [("<image>", "x")], "1 <image> marks in question and history, but 0 pictures"),
    ],
)
def test_marks_and_pictures_must_agree(
    text: str, pictures: list[str], history: list[tuple[str, str]] | None, numbers: str
) -> None:
    with pytest.raises(PromptError, match=f"{numbers}: pass the pictures of all rounds"):
        from_prompt(text, pictures, history)


def test_empty_question_needs_a_picture() -> None:
    assert question(from_prompt("", ["a"])) == "<image>\n"
    with pytest.raises(PromptError, match="the question is empty"):
        from_prompt("")


@pytest.mark.parametrize("history", [["Hello"], [("a", "b", "c")], [("a", None)], [(1, "b")], "ab", 5, {1}])
def test_history_must_be_pairs_of_strings(history: Any) -> None:
    with pytest.raises(PromptError, match="pairs of question and answer"):
        from_prompt("What?", (), history)


@pytest.mark.parametrize("pictures", ["a.jpg", b"x", 5, None])
def test_pictures_are_a_list(pictures: Any) -> None:
    with pytest.raises(PromptError, match="pictures must be a list"):
        from_prompt("What?", pictures)


def test_question_must_be_a_string() -> None:
    with pytest.raises(PromptError, match="both strings"):
        from_prompt(3)  # type: ignore[arg-type]


def test_picture_keeps_its_choice() -> None:
    picture = Picture("a", TileChoice(max_tiles=2))
    assert from_prompt("What?", [picture]).pictures == (picture,)


def test_answers_may_not_hold_pictures() -> None:
    with pytest.raises(PromptError, match="an assistant message holds a picture"):
        Message(Role.ASSISTANT, (Picture("a"),))


def test_with_answer_appends_one() -> None:
    before = from_prompt("What?")
    after = before.with_answer("A cat.")
    assert [message.text for message in after.messages] == ["What?", "A cat."]
    assert len(before.messages) == 1


@pytest.mark.parametrize(
    ("label", "text"), [("Frame-{k}: ", "Frame-7: "), ("{k}/{k} ", "7/7 "), ("Frame: ", "Frame: "), ("", "")]
)
def test_frame_labels(label: str, text: str) -> None:
    assert label_frame(label, 7) == text


@pytest.mark.parametrize(
    "label", ["F{0}", "{}", "{x}", "{k.real}", "{k:9999999999}", "{k", "k}", "{{k}}", 5, None]
)
def test_frame_labels_are_no_format_strings(label: Any) -> None:
    with pytest.raises(PromptError, match="a frame label is a string such as"):
        label_frame(label, 7)
