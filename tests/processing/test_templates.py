from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from internvl.chat_templates import TEMPLATES
from internvl.errors import PromptError, UnknownNameError
from internvl.processing.conversation import Message, Picture, Role
from internvl.processing.templates import Rendered, find_template, render

PICTURE = Picture("a.jpg")


def user(*parts: str | Picture) -> Message:
    return Message(Role.USER, parts)


def assistant(text: str) -> Message:
    return Message(Role.ASSISTANT, (text,))


def texts(rendered: Rendered, kind: str) -> list[str]:
    return [rendered.text[start:end] for start, end in getattr(rendered, kind)]


TURNS = (user("Q1"), assistant("A1"), user("Q2"))

# As published for three turns and an open answer; system messages shortened to S.
CHATML = (
    "<|im_start|>system\nS<|im_end|><|im_start|>user\nQ1<|im_end|><|im_start|>assistant\nA1<|im_end|>"
    "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
)
PROMPTS = {
    "Hermes-2@2024-05": CHATML,
    "internlm2-chat@2024-05": CHATML,
    "phi3-chat@2024-05": "<|system|>\nS<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n"
    "<|user|>\nQ2<|end|>\n<|assistant|>\n",
    "internvl_zh@2024-05": "S <human>: Q1 <bot>: A1</s><human>: Q2 <bot>:",
    "vicuna_v1.1": "S USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:",
    "llava_v1": "S USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:",
    "internlm-chat": "S<|User|>:Q1<eoh>\n<|Bot|>:A1<eoa>\n<|User|>:Q2<eoh>\n<|Bot|>:",
    "internvl3_5_gpt_oss": "<|start|>system<|message|>S<|end|><|start|>user<|message|>Q1<|end|>"
    "<|start|>assistantA1<|end|><|start|>user<|message|>Q2<|end|><|start|>assistant",
    "plain": "SQ1A1\nQ2",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_what_was_published(name: str) -> None:
    rendered = render(find_template(name).with_system("S"), TURNS, open_answer=True)
    assert rendered.text == PROMPTS[name]


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("Hermes-2@2024-05", "<|im_start|>system\nAnswer the questions.<|im_end|>"),
        (
            "internlm2-chat@2024-05",
            "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).",
        ),
        ("phi3-chat@2024-05", "<|system|>\nYou are an AI assistant whose name is Phi-3.<|end|>\n<|user|>\n"),
        (
            "vicuna_v1.1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives",
        ),
        (
            "llava_v1",
            "A chat between a curious human and an artificial intelligence assistant. The assistant gives",
        ),
        (
            "internlm-chat",
            "A chat between a curious <|User|> and an <|Bot|>. The <|Bot|> gives helpful, detailed,",
        ),
    ],
)
def test_system_message_of_older_templates(name: str, opening: str) -> None:
    assert render(find_template(name), TURNS).text.startswith(opening)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("internvl2_5", ["A1<|im_end|>", "A2<|im_end|>"]),
        ("Hermes-2", ["A1<|im_end|>", "A2<|im_end|>"]),
        ("internlm2-chat", ["A1<|im_end|>", "A2<|im_end|>"]),
        ("phi3-chat", ["A1<|end|>", "A2<|end|>"]),
        ("phi3-chat@2024-05", ["A1<|end|>", "A2<|end|>"]),
        ("internvl_zh", [" A1</s>", " A2</s>"]),
        ("vicuna_v1.1", [" A1</s>", " A2</s>"]),
        ("plain", ["A1\n", "A2\n"]),
        ("internvl3_5_gpt_oss", ["A1<|end|>", "A2<|return|>"]),
    ],
)
def test_answers_hold_text_and_end_mark(name: str, answers: list[str]) -> None:
    rendered = render(find_template(name), (*TURNS, assistant("A2")))
    assert texts(rendered, "answers") == answers


@pytest.mark.parametrize("name", TEMPLATES)
def test_answer_begins_where_an_open_prompt_ends(name: str) -> None:
    template = find_template(name)
    opened = render(template, TURNS, open_answer=True).text
    closed = render(template, (*TURNS, assistant("A2")))
    assert closed.text.startswith(opened)
    assert closed.answers[-1][0] == len(opened)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_comes_from_outside_is_plain(name: str) -> None:
    rendered = render(find_template(name), TURNS, system="mine")
    assert texts(rendered, "plain") == ["mine", "Q1", "A1", "Q2"]


def test_own_system_message_is_trusted() -> None:
    template = find_template("internvl2_5").with_system("<ref>own")
    rendered = render(template, (user("Q"),))
    assert "system\n<ref>own<|im_end|>" in rendered.text
    assert texts(rendered, "plain") == ["Q"]
    assert find_template("internvl2_5").with_system(None) is find_template("internvl2_5")


def test_empty_system_message_keeps_its_frame() -> None:
    assert render(find_template("phi3-chat"), (), system="").text == "<|system|>\n<|end|>"


def test_pictures_are_runs_of_slots() -> None:
    messages = (user("see ", PICTURE, "\n", PICTURE, "<image>"),)
    rendered = render(find_template("plain"), messages, slots=[2, 1])
    assert rendered.text == "see <img><IMG_CONTEXT><IMG_CONTEXT></img>\n<img><IMG_CONTEXT></img><image>"
    assert texts(rendered, "pictures") == [
        "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
        "<img><IMG_CONTEXT></img>",
    ]
    assert texts(rendered, "plain") == ["see ", "\n", "<image>"]


def test_pictures_without_tags_and_as_marks() -> None:
    assert (
        render(find_template("plain"), (user(PICTURE, "a"),), slots=[1], tags=("", "")).text
        == "<IMG_CONTEXT>a"
    )
    assert render(find_template("plain"), (user(PICTURE, "a"),)).text == "<image>a"


def test_wrong_number_of_slots_is_an_error() -> None:
    with pytest.raises(PromptError, match="1 pictures in the messages, but slots for 2"):
        render(find_template("plain"), (user(PICTURE),), slots=[1, 1])


def test_message_without_text_stays_open() -> None:
    rendered = render(find_template("internvl_zh"), (user("Q"), assistant("")))
    assert rendered.text == " <human>: Q <bot>:"
    assert rendered.answers == ()


def test_message_with_only_a_picture_is_closed() -> None:
    assert render(find_template("internvl_zh"), (user(PICTURE),)).text == " <human>: <image> "


def test_unknown_template_lists_what_exists() -> None:
    with pytest.raises(UnknownNameError, match="no template 'chatty'; there are internvl_zh, Hermes-2"):
        find_template("chatty")


def test_stop_tokens() -> None:
    found = {name: template.stop for name, template in TEMPLATES.items()}
    assert (found["internvl2_5"], found["Hermes-2"], found["internlm2-chat"]) == ("<|im_end|>",) * 3
    assert (found["phi3-chat"], found["phi3-chat@2024-05"]) == ("<|end|>", "<|end|>")
    assert (found["internvl_zh"], found["vicuna_v1.1"], found["internlm-chat"]) == ("</s>", "</s>", "<eoa>")
    assert (found["internvl3_5_gpt_oss"], found["plain"]) == ("<|return|>", None)


def test_rows_are_frozen_and_named_once() -> None:
    assert all(name == template.name for name, template in TEMPLATES.items())
    assert len(TEMPLATES) == 16
    with pytest.raises(FrozenInstanceError):
        find_template("plain").stop = "x"  # type: ignore[misc]
