"""Prompts, ids and labels of the reference implementation, character for character and token for token."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from internvl.config import ChatConfig, ProjectorConfig, TextConfig, TilingConfig, VisionConfig
from internvl.processing.conversation import Conversation, Message, Picture, Role, from_prompt
from internvl.processing.processor import Processor
from internvl.processing.templates import find_template, render
from internvl.processing.tiles import Tiles
from internvl.processing.tiling import Grid
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures

CHATS = ("internvl2_5_qwen2", "internvl1_5_internlm2")
TOKENIZERS = (*CHATS, "internvl_14b")
SINGLE_CALLS = (
    "single",
    "single_no_placeholder",
    "round1",
    "round2",
    "round3",
    "multi_image",
    "combined_image",
    "video_frames",
    "text",
    "text_round2",
)


def read(golden_dir: GoldenFixtures, *names: str) -> Any:
    return json.loads(golden_dir.joinpath(*names).read_text(encoding="utf-8"))


def ready(count: int, size: int) -> Tiles:
    return Tiles(tiles_N3HW=torch.zeros(count, 3, size, size), grid=Grid(1, 1), width=1, height=1, key="")


def chat_processor(golden_dir: GoldenFixtures, name: str) -> Processor:
    """Only what text depends on is read from config.json."""
    saved = read(golden_dir, name, "config.json")
    size, rows = saved["force_image_size"], saved["llm_config"]["vocab_size"]
    config = ChatConfig(
        vision=VisionConfig(image_size=size),
        projector=ProjectorConfig(),
        text=TextConfig(
            vocab_size=rows, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8
        ),
        tiling=TilingConfig(tile_size=size),
        template=saved["template"],
    )
    return Processor(config, load_tokenizer(golden_dir / name))


def test_every_template_renders_as_the_reference(golden_dir: GoldenFixtures) -> None:
    rows = read(golden_dir, "conversation", "expected.json")["templates"]
    for row in rows:
        template = find_template(row["template"])
        assert template.system_message == row["system_message"]
        for case in row["prompts"]:
            messages = []
            for question, answer in case["turns"]:
                messages.append(Message(Role.USER, (question,)))
                messages += [Message(Role.ASSISTANT, (answer,))] if answer is not None else []
            is_open = case["turns"][-1][1] is None
            rendered = render(template, messages, system=case["system"], open_answer=is_open)
            assert rendered.text == case["prompt"]
    assert len(rows) == 5


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_case_is_exact(golden_dir: GoldenFixtures, name: str) -> None:
    tokenizer = load_tokenizer(golden_dir / name)
    expected = read(golden_dir, name, "expected.json")["tokenizer"]
    plain = expected.get("no_eos", expected)
    found = (tokenizer.size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    assert found == tuple(plain[key] for key in ("length", "pad_token_id", "bos_token_id", "eos_token_id"))
    for case in plain["cases"]:
        assert tokenizer.encode(case["text"]).ids == case["input_ids"]
        assert tokenizer.decode(case["input_ids"]) == case["decoded_skip_special"]
        assert tokenizer.decode(case["input_ids"], skip_special=False) == case["decoded"]
    for case in expected.get("with_eos", ()):
        assert tokenizer.encode(case["text"], eos=True).ids == case["input_ids"]


@pytest.mark.parametrize("call", SINGLE_CALLS)
@pytest.mark.parametrize("name", CHATS)
def test_every_call_makes_the_reference_prompt(golden_dir: GoldenFixtures, name: str, call: str) -> None:
    processor = chat_processor(golden_dir, name)
    size = processor.config.tiling.tile_size
    expected = read(golden_dir, name, "expected.json")
    case = expected[call]
    pictures = [ready(count, size) for count in tile_counts(call, case, expected["settings"]["num_patches"])]
    inputs = processor(from_prompt(case["question"], pictures, case["history_in"]))
    assert inputs.text == case["prompt"]
    assert inputs.ids == torch.tensor(case["input_ids"]).flatten().tolist()
    assert len(inputs.slots) == sum(inputs.tile_counts) * processor.config.tokens_per_tile
    assert processor.stop_ids == (case["eos_token_id"],)


@pytest.mark.parametrize("call", ["batch", "batch_beams"])
@pytest.mark.parametrize("name", CHATS)
def test_every_row_of_a_batch_makes_the_reference_ids(
    golden_dir: GoldenFixtures, name: str, call: str
) -> None:
    processor = chat_processor(golden_dir, name)
    case = read(golden_dir, name, "expected.json")[call]
    size = processor.config.tiling.tile_size
    rows = zip(case["questions"], case["num_patches_list"], case["prompts"], case["input_ids"], strict=True)
    for question, count, prompt, padded in rows:
        inputs = processor(from_prompt(question, [ready(count, size)]))
        assert inputs.text == prompt
        assert inputs.ids == padded[len(padded) - len(inputs.ids) :]
    assert len(case["questions"]) == 2


def tile_counts(call: str, case: dict[str, Any], per_image: list[int]) -> list[int]:
    """Tiles of each picture; where the call does not say, all tiles are one picture."""
    if case["num_patches_list"] is not None:
        return list(case["num_patches_list"])
    unnamed = {"text": [], "text_round2": [], "combined_image": [sum(per_image)]}
    return unnamed.get(call, per_image[:1])


@pytest.mark.parametrize("name", CHATS)
def test_answers_decode_to_the_reference_responses(golden_dir: GoldenFixtures, name: str) -> None:
    tokenizer = load_tokenizer(golden_dir / name)
    expected = read(golden_dir, name, "expected.json")
    for call in SINGLE_CALLS:
        ids = torch.tensor(expected[call]["new_token_ids"]).flatten().tolist()
        assert tokenizer.decode(ids).strip() == expected[call]["response"]


@pytest.mark.parametrize("name", CHATS)
def test_labels_of_training_samples_are_exact(golden_dir: GoldenFixtures, name: str) -> None:
    processor = chat_processor(golden_dir, name)
    expected = read(golden_dir, name, "train_expected.json")
    rows = {row["id"]: row for row in expected["settings"]["conversations"]}
    for sample in expected["samples"]:
        inputs = processor(training_conversation(processor, rows[sample["id"]], sample), open_answer=False)
        assert inputs.ids == sample["input_ids"]
        assert inputs.labels() == sample["labels"]
        learnt = [label for label in inputs.labels() if label >= 0]
        assert processor.tokenizer.decode(learnt, skip_special=False) == sample["supervised_text"]
    assert len(expected["samples"]) == len(rows)


def training_conversation(processor: Processor, row: dict[str, Any], sample: dict[str, Any]) -> Conversation:
    """A record of the training files; text that names no picture has none, whatever `num_tiles` says."""
    images = row.get("image", [])
    images = images if isinstance(images, list) else [images]
    size = processor.config.tiling.tile_size
    pictures = iter([Picture(ready(sample["num_tiles"] // len(images), size)) for _ in images])
    turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
    if images and not any("<image>" in value for _, value in turns):
        turns[0] = (turns[0][0], "<image>\n" + turns[0][1])
    if processor.template.strips_training_text:
        turns = [(role, value.strip()) for role, value in turns]
    system = next((value for role, value in turns if role == "system"), None)
    messages = []
    for role, value in turns:
        pieces = value.split("<image>")
        parts = [pieces[0]]
        for piece in pieces[1:]:
            parts += [next(pictures), piece]
        if role != "system":
            messages.append(Message(Role.USER if role == "human" else Role.ASSISTANT, tuple(parts)))
    return Conversation(tuple(messages), system)
