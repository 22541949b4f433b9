"""Answers to held-out questions: the ones chat gives, in order, whatever is asked together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import internvl
from internvl import ChatModel
from internvl.data.bad_samples import BadSample
from internvl.data.batch import Batch
from internvl.data.chat_examples import Examples
from internvl.data.meta import DataSet, open_data
from internvl.training.answers import Answer, Answers
from internvl.training.features import FeatureCache

ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "pairs": [["What?", "x"], ["Where?", "y"], ["What?", "z"]]},
    {"image": "none.png", "question": "What?", "answer": "x"},
    {"question": "Hello!", "answer": "Hi!"},
    {"image": "b.png", "question": "What?", "answer": "x"},
    {"video": "frames", "question": "What?", "answer": "x"},
]
KEYS = ["rows:0#0", "rows:0#1", "rows:2", "rows:3", "rows:4"]


@pytest.fixture(scope="module")
def chat(golden_dir: Path) -> ChatModel:
    loaded = internvl.load(golden_dir / "internvl2_5_qwen2")
    assert isinstance(loaded, ChatModel)
    return loaded


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    (tmp_path / "frames").mkdir()
    for seed, name in enumerate(("a", "b", "frames/1", "frames/2")):
        pixels = np.random.default_rng(seed).integers(0, 256, (84, 170, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    (found,) = open_data(tmp_path / "rows.jsonl")
    return found


def ask(chat: ChatModel, data: DataSet, bad: list[BadSample], **options: Any) -> list[Answer]:
    prepare = options.pop("prepare", None)
    answers = Answers(chat.vlm, chat.processor, 8, prepare=prepare)
    examples = Examples(chat.processor, max_length=4096)
    return list(answers.stream(examples, data, range(len(ROWS)), bad, **options))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_answers_are_those_of_chat(chat: ChatModel, data: DataSet, at_once: int) -> None:
    bad: list[BadSample] = []
    found = ask(chat, data, bad, at_once=at_once)
    assert [one.key for one in found] == KEYS
    assert [one.question.references for one in found] == [("x", "z"), ("y",), ("Hi!",), ("x",), ("x",)]
    assert [(one.key, one.error) for one in bad] == [("rows:1", "ImageError")]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("What?", {"images": data.root / "a.png"}),
        ("Where?", {"images": data.root / "a.png"}),
        ("Hello!", {}),
        ("What?", {"images": data.root / "b.png"}),
        ("What?", {"videos": [data.root / "frames"]}),
    ]
    expected = [chat.chat(text, max_new_tokens=8, **media).text for text, media in asked]
    assert [one.text for one in found] == expected
    assert len(set(expected)) > 2


def test_the_limit_of_the_data_set_is_that_of_chat(chat: ChatModel, data: DataSet) -> None:
    found = ask(chat, replace(data, max_tiles=1), [])
    assert found[3].text == chat.chat("What?", data.root / "b.png", max_tiles=1, max_new_tokens=8).text


def test_what_is_known_is_not_asked(chat: ChatModel, data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    texts = Answers.texts

    def count(self: Answers, some: Any) -> list[str]:
        asked.extend(one.key for one in some)
        return texts(self, some)

    monkeypatch.setattr(Answers, "texts", count)
    found = ask(chat, data, [], known=lambda key, question: "known" if key == "rows:0#1" else None)
    assert [one.key for one in found] == KEYS
    assert [one.is_new for one in found] == [True, False, True, True, True]
    assert found[1].text == "known"
    assert asked == [key for key in KEYS if key != "rows:0#1"]


def test_a_prompt_without_room_for_its_answer_is_bad(chat: ChatModel, data: DataSet) -> None:
    bad: list[BadSample] = []
    answers = Answers(chat.vlm, chat.processor, 4096 - 30)
    examples = Examples(chat.processor, max_length=4096)
    assert list(answers.stream(examples, data, [0], bad)) == []
    assert bad[0].error == "ContextOverflowError"


def test_kept_features_give_the_same_answers(chat: ChatModel, data: DataSet, tmp_path: Path) -> None:
    frozen = chat.vlm.vit.requires_grad_(False)
    cache = FeatureCache(chat.vlm, tmp_path / "features")
    seen: list[int] = []

    def prepare(batch: Batch) -> Batch:
        seen.append(len(batch.tiles_N3HW))
        return cache.features(batch)

    found = ask(chat, data, [], prepare=prepare)
    assert [one.text for one in found] == [one.text for one in ask(chat, data, [])]
    assert seen
    frozen.requires_grad_(True)
