"""A whole captioning run on made pictures with a tiny checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from internvl.checkpoints.gguf_tokenizer import VocabularyFile, tokenizer_files
from internvl.checkpoints.load import load_model
from internvl.checkpoints.write import save_model
from internvl.config import ADDED_TOKENS
from internvl.data.caption_set import CaptionSet, Questions, open_captions
from internvl.models.vlm import VLM
from internvl.recipes.nano import nano
from internvl.training.captioning import CaptionRecipe, run_captioning
from internvl.training.features import cache_features, features_key

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
ALPHABET = [chr(byte) for byte in BYTES] + [chr(256 + index) for index in range(256 - len(BYTES))]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QUESTIONS = Questions(main="What?", others=("Who?", "Where?"), main_share=0.5)


@pytest.fixture
def checkpoint(model: VLM, tmp_path: Path) -> Path:
    vocabulary = VocabularyFile(
        tokens=(*SPECIAL, *ALPHABET),
        special=SPECIAL,
        merges=(),
        pre="smollm",
        bos=None,
        eos="<|im_end|>",
        pad="<|im_end|>",
        adds_bos=False,
    )
    files = tmp_path / "files"
    files.mkdir()
    for name, text in tokenizer_files(vocabulary, ADDED_TOKENS).items():
        (files / name).write_text(text, encoding="utf-8")
    text_config = replace(
        model.config.text, vocab_size=len(vocabulary.tokens) + len(ADDED_TOKENS), max_positions=512
    )
    config = replace(model.config, text=text_config)
    save_model(VLM(config), config, tmp_path / "model", extra_files_from=files, family="llama")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six plain pictures; the caption names the colour."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for index, colour in enumerate(("red", "lime", "blue", "white", "black", "pink")):
        Image.new("RGB", (56, 56), colour).save(folder / f"{index}.png")
        rows.append(json.dumps({"image": f"{index}.png", "en": [f"{colour} .", f"all {colour}"]}))
    (folder / "train.jsonl").write_text("\n".join(rows))
    (folder / "val.jsonl").write_text("\n".join(rows[:2]))
    return folder


@pytest.fixture
def captions(checkpoint: Path, data: Path) -> CaptionSet:
    model = load_model(checkpoint)
    assert isinstance(model, VLM)
    return open_captions(data / "train.jsonl", checkpoint, model.config, QUESTIONS)


def test_groups_are_the_tokens_of_whole_conversations(captions: CaptionSet) -> None:
    group = captions.group(0, "What?")
    tokenizer = captions.processor.tokenizer
    assert group.prefix.count(captions.context_id) == 4
    assert tokenizer.decode(group.prefix, skip_special=False).endswith(
        "What?<|im_end|>\n<|im_start|>assistant\n"
    )
    answers = [tokenizer.decode(branch, skip_special=False) for branch in group.branches]
    assert answers == ["Red.<|im_end|>", "All red.<|im_end|>"]


def test_an_epoch_meets_every_picture_once_and_steps_repeat(captions: CaptionSet) -> None:
    steps = [captions.choose(step, 2, 0) for step in range(6)]
    assert sorted(index for indices, _ in steps[:3] for index in indices) == list(range(6))
    assert sorted(index for indices, _ in steps[3:] for index in indices) == list(range(6))
    assert captions.choose(4, 2, 0) == steps[4]
    asked = {question for _, questions in steps for question in questions}
    assert asked <= {"What?", "Who?", "Where?"}
    assert len(asked) > 1


def test_features_are_the_towers(captions: CaptionSet, checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    assert isinstance(model, VLM)
    features = cache_features(model, captions.tiles, 6, tmp_path / "f.npy", batch=4)
    with torch.inference_mode():
        expected_NPC = model.vit(captions.tiles(5))[:, 1:]
    torch.testing.assert_close(features.take([5]), expected_NPC, rtol=1e-3, atol=1e-3)
    assert np.load(tmp_path / "f.npy").dtype == np.float16
    again = cache_features(model, lambda _: pytest.fail("must not be read again"), 6, tmp_path / "f.npy")
    assert again.take([0, 5]).shape == (2, 16, 24)


def test_the_key_of_features_follows_all_that_they_depend_on(checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    assert isinstance(model, VLM)
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"one")
    key = features_key(model, [picture], torch.float32)
    assert features_key(model, [picture], torch.float32) == key
    others = {features_key(model, [picture], torch.bfloat16), features_key(model, [], torch.float32)}
    with torch.no_grad():
        model.projector.fc1.weight.add_(1)
        assert features_key(model, [picture], torch.float32) == key
        model.vit.embed.class_token.add_(1)
    others.add(features_key(model, [picture], torch.float32))
    picture.write_bytes(b"other")
    others.add(features_key(model, [picture], torch.float32))
    assert len(others | {key}) == 5


def tiny() -> CaptionRecipe:
    recipe = nano()
    run = replace(recipe.run, steps=4, batch_size=2, warmup=1, log_every=1, eval_every=2, save_every=2)
    return replace(recipe, run=run)


def test_the_recipe_runs_and_trains_the_projector_only(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    trained = load_file(run_captioning(tiny(), checkpoint, data, tmp_path / "out"))
    model = load_model(checkpoint)
    assert set(trained) == {name for name in model.state_dict() if name.startswith("projector.")}
    assert all(value.dtype == torch.bfloat16 and value.isfinite().all() for value in trained.values())
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4]
    assert all(math.isfinite(row.get("loss", 0.0)) for row in rows)


def test_a_second_call_changes_nothing(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    first = load_file(run_captioning(tiny(), checkpoint, data, tmp_path / "out"))
    second = load_file(run_captioning(tiny(), checkpoint, data, tmp_path / "out"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
