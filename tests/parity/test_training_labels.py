"""What is learnt, token by token: the reference's own examples, and masks written out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from internvl.config import ChatConfig, ProjectorConfig, TextConfig, TilingConfig, VisionConfig
from internvl.data.chat_examples import Examples
from internvl.data.example import Example
from internvl.data.meta import DataSet
from internvl.errors import InputError
from internvl.processing.colour import RELEASED_POLICY
from internvl.processing.processor import IGNORED, Processor
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures
from tests.processing import tiny_tokenizers

CHATS = ("internvl2_5_qwen2", "internvl1_5_internlm2")


class Rows:
    """A source of rows in memory."""

    def __init__(self, rows: list[Mapping[str, Any]]) -> None:
        self.rows, self.name = rows, "rows"

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]

    def where(self, index: int) -> str:
        return f"row {index}"


def dataset(root: Path, max_tiles: int | None = None) -> DataSet:
    return DataSet(name="golden", source=Rows([{}]), root=root, max_tiles=max_tiles)


def processor(path: Path, template: str, image_size: int, vocab_size: int) -> Processor:
    text = TextConfig(
        vocab_size=vocab_size, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8
    )
    config = ChatConfig(
        vision=VisionConfig(image_size=image_size),
        projector=ProjectorConfig(),
        text=text,
        tiling=TilingConfig(tile_size=image_size),
        template=template,
    )
    return Processor(config, load_tokenizer(path), policy=RELEASED_POLICY)


def golden(golden_dir: GoldenFixtures, name: str) -> tuple[dict[str, Any], Processor]:
    expected = json.loads((golden_dir / f"{name}/train_expected.json").read_text(encoding="utf-8"))
    saved = json.loads((golden_dir / f"{name}/config.json").read_text(encoding="utf-8"))
    settings = expected["settings"]
    rows = saved["llm_config"]["vocab_size"]
    return expected, processor(golden_dir / name, settings["template"], settings["image_size"], rows)


def ids_and_labels(example: Example) -> tuple[list[int], list[int]]:
    (branch,) = example.branches
    labels = [id if trained else IGNORED for id, trained in zip(branch.ids, branch.trained, strict=True)]
    return [*example.prefix, *branch.ids], [IGNORED] * len(example.prefix) + labels


@pytest.mark.parametrize("name", CHATS)
def test_ids_labels_and_tiles_equal_the_reference(golden_dir: GoldenFixtures, name: str) -> None:
    expected, reader = golden(golden_dir, name)
    settings = expected["settings"]
    examples = Examples(reader, max_length=4096)
    data = dataset(golden_dir / "images", settings["max_dynamic_patch"])
    tiles = load_file(golden_dir / f"{name}/train_expected.safetensors")["tiles"]
    rows = {row["id"]: row for row in settings["conversations"]}
    assert len(expected["samples"]) == len(rows)
    for sample in expected["samples"]:
        row = rows[sample["id"]]
        example = examples.example(row, data, seed=0)
        ids, labels = ids_and_labels(example)
        assert ids == sample["input_ids"], row
        assert labels == sample["labels"], row
        assert examples.measure(row, data).tokens == len(ids)
        if example.tiles_N3HW is None:  # the reference puts a white tile into text
            assert not any(sample["image_flags"])
        else:
            torch.testing.assert_close(example.tiles_N3HW, tiles[sample["tile_index"]], atol=0.02, rtol=0)


@pytest.mark.parametrize("name", CHATS)
def test_what_the_reference_cuts_or_rejects_is_a_bad_sample(golden_dir: GoldenFixtures, name: str) -> None:
    expected, reader = golden(golden_dir, name)
    settings = expected["settings"]
    data = dataset(golden_dir / "images", settings["max_dynamic_patch"])
    rows = {row["id"]: row for row in settings["conversations"]}
    num_rejected = 0
    for sample in expected["samples"]:
        padded = sample["padded"]
        examples = Examples(reader, max_length=padded.get("max_length", settings["model_max_length_padded"]))
        if "error" in padded:
            num_rejected += 1
            with pytest.raises(InputError, match="the limit is"):
                examples.example(rows[sample["id"]], data, seed=0)
        else:
            assert examples.example(rows[sample["id"]], data, seed=0).size.tokens <= examples.max_length
    assert num_rejected == sum("error" in sample["padded"] for sample in expected["samples"])
    truncated = expected["truncated"]
    with pytest.raises(InputError, match=f"the limit is {truncated['max_length']}"):
        Examples(reader, max_length=truncated["max_length"]).example(rows[truncated["id"]], data, seed=0)


TURNS = [
    {"from": "human", "value": "Hello, who are you?"},
    {"from": "gpt", "value": "A model."},
    {"from": "human", "value": "Please describe the image."},
    {"from": "gpt", "value": "A red panda."},
]
SYSTEM = {"from": "system", "value": "Be short."}

# Template, then the text in pieces: True where it is learnt.
MASKS = {
    "internvl2_5": (
        ("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHello, who are you?<|im_end|>\n", False),
        ("<|im_start|>assistant\n", False),
        ("A model.<|im_end|>", True),
        ("\n<|im_start|>user\nPlease describe the image.<|im_end|>\n<|im_start|>assistant\n", False),
        ("A red panda.<|im_end|>", True),
        ("\n", False),
    ),
    "Hermes-2": (
        ("<|im_start|>system\nBe short.<|im_end|><|im_start|>user\nHello, who are you?<|im_end|>", False),
        ("<|im_start|>assistant\n", False),
        ("A model.<|im_end|>", True),
        ("<|im_start|>user\nPlease describe the image.<|im_end|><|im_start|>assistant\n", False),
        ("A red panda.<|im_end|>", True),
    ),
    "phi3-chat": (
        ("<|system|>\nBe short.<|end|><|user|>\nHello, who are you?<|end|><|assistant|>\n", False),
        ("A model.<|end|>", True),
        ("<|user|>\nPlease describe the image.<|end|><|assistant|>\n", False),
        ("A red panda.<|end|>", True),
    ),
    "internvl_zh": (
        ("Be short. <human>: Hello, who are you? <bot>:", False),
        (" A model.</s>", True),
        ("<human>: Please describe the image. <bot>:", False),
        (" A red panda.</s>", True),
    ),
    "vicuna_v1.1": (
        ("Be short. USER: Hello, who are you? ASSISTANT:", False),
        (" A model.</s>", True),
        ("USER: Please describe the image. ASSISTANT:", False),
        (" A red panda.</s>", True),
    ),
}


def tokenizer_of(template: str, folder: Path) -> Path:
    """A tiny one of the kind that the template's models have."""
    tokens: tuple[str, ...] = tiny_tokenizers.IMAGE_TOKENS
    if template in ("internvl2_5", "Hermes-2"):
        return tiny_tokenizers.qwen2(folder)
    if template == "phi3-chat":
        tokens = (*tokens, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    return tiny_tokenizers.llama(folder, added=tuple(map(tiny_tokenizers.row, tokens)), add_bos_token=True)


def pieces_of(example: Example, reader: Processor) -> Iterator[tuple[str, bool]]:
    """Runs of learnt and other tokens as text."""
    ids, labels = ids_and_labels(example)
    if reader.tokenizer.adds_bos:
        assert (ids.pop(0), labels.pop(0)) == (reader.tokenizer.bos_id, IGNORED)
    start = 0
    for index in range(1, len(ids) + 1):
        if index == len(ids) or (labels[index] == IGNORED) != (labels[start] == IGNORED):
            yield reader.tokenizer.decode(ids[start:index], skip_special=False), labels[start] != IGNORED
            start = index


def squeezed(text: str) -> str:
    """Without spaces: SentencePiece shows some of its own around special tokens."""
    return text.replace(" ", "")


@pytest.mark.parametrize("template", MASKS)
def test_masks_are_those_written_out(tmp_path: Path, template: str) -> None:
    reader = processor(tokenizer_of(template, tmp_path), template, 28, 1000)
    example = Examples(reader, max_length=512).example(
        {"conversations": [SYSTEM, *TURNS]}, dataset(tmp_path), seed=0
    )
    found = list(pieces_of(example, reader))
    written: list[tuple[str, bool]] = []
    for text, is_learnt in MASKS[template]:
        if written and written[-1][1] == is_learnt:
            written[-1] = (written[-1][0] + text, is_learnt)
        else:
            written.append((text, is_learnt))
    assert [(squeezed(text), flag) for text, flag in found] == [
        (squeezed(text), flag) for text, flag in written
    ]


@pytest.mark.parametrize("template", MASKS)
def test_every_answer_is_learnt_from_its_first_token_to_its_end(tmp_path: Path, template: str) -> None:
    """The number of learnt tokens is that of the answers tokenised in place, ends included."""
    reader = processor(tokenizer_of(template, tmp_path), template, 28, 1000)
    example = Examples(reader, max_length=512).example({"conversations": TURNS}, dataset(tmp_path), seed=0)
    (branch,) = example.branches
    end = reader.stop_ids[0]
    learnt = [id for id, trained in zip(branch.ids, branch.trained, strict=True) if trained]
    assert learnt.count(end) == 2
    assert learnt[-1] == end
    assert branch.trained[0]
