"""InternVL-C and -G as published scripts call them: padding, gradients, moving, saving, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from internvl.compat import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessor,
    InternVLModel,
    Tokenizer,
)
from internvl.errors import DeviceError, InputError, PromptError
from tests.compat.conftest import noise


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "internvl_14b"


@pytest.fixture(scope="module")
def model(folder: Path) -> InternVLModel:
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(loaded, InternVLModel)
    return loaded


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    loaded = AutoTokenizer.from_pretrained(folder, use_fast=False, add_eos_token=True)
    loaded.pad_token_id = 0
    return loaded


@pytest.fixture
def pixels(folder: Path) -> Tensor:
    images = [noise(100, 60, 1), noise(60, 100, 2)]
    found = CLIPImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt").pixel_values
    assert isinstance(found, Tensor)
    return found


def test_padding_changes_nothing(model: InternVLModel, tokenizer: Tokenizer, pixels: Tensor) -> None:
    texts = ["summarize:a red panda", "summarize:a car"]
    assert tokenizer.padding_side == "right"
    wide = tokenizer(texts, return_tensors="pt", max_length=80, truncation=True, padding="max_length")
    assert wide.input_ids.shape == (2, 80)
    tokenizer.padding_side = "left"
    narrow = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model.encode_text(wide.input_ids)
        torch.testing.assert_close(model.encode_text(narrow.input_ids), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.contrastive.embed_texts(["a red panda", "a car"]), expected)
        logits, transposed = model(pixels, wide.input_ids, "InternVL-G")
    assert logits.shape == (2, 2)
    assert torch.equal(logits.T, transposed)
    torch.testing.assert_close(
        logits, model.contrastive.logits(pixels, ["a red panda", "a car"], "G"), atol=1e-4, rtol=1e-4
    )


def test_the_picture_processor_crops(model: InternVLModel, pixels: Tensor) -> None:
    ours = model.contrastive.prepare([noise(100, 60, 1), noise(60, 100, 2)], fit="crop")
    torch.testing.assert_close(pixels, ours, atol=1e-5, rtol=1e-5)


def test_encoders_run_with_gradients(model: InternVLModel, pixels: Tensor) -> None:
    assert model.encode_image(pixels, mode="InternVL-C").requires_grad
    with torch.no_grad():
        assert not model.encode_image(pixels, mode="InternVL-C").requires_grad
    assert model.logit_scale.exp().item() > 0


def test_prompts_of_unequal_length(model: InternVLModel, tokenizer: Tokenizer, pixels: Tensor) -> None:
    """Each caption is the one its prompt gets alone; the default length is said by the documentation."""
    tokenizer.add_eos_token = False
    prompts = ["English caption:", "Chinese caption: and so on"]
    together = tokenizer(prompts, return_tensors="pt", padding=True)
    settings = {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 6}
    found = model.generate(pixels, together.input_ids, together.attention_mask, **settings)
    for row, prompt in enumerate(prompts):
        alone = tokenizer(prompt, return_tensors="pt")
        made = model.generate(pixel_values=pixels[row : row + 1], input_ids=alone.input_ids, **settings)
        assert found[row].tolist() == made[0].tolist()
    longest = model.generate(
        pixels[:1], together.input_ids[:1], together.attention_mask[:1], {"num_beams": 1}
    )
    assert longest.shape[1] <= 32


def test_saved_and_loaded_again(model: InternVLModel, pixels: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        for mode in ("InternVL-C", "InternVL-G"):
            assert torch.equal(again.encode_image(pixels, mode), model.encode_image(pixels, mode))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a").input_ids


def test_configuration_under_published_names(folder: Path, model: InternVLModel) -> None:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.qllama_config.num_query_token == config.num_query_token == 12
    assert config.vision_config.image_size == 84
    assert model.config.clip_embed_dim == 56


def test_moving(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")
    with torch.no_grad():
        found = model.encode_image(torch.zeros(1, 3, 84, 84, dtype=torch.bfloat16), "InternVL-G")
    assert found.dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            model.cuda()


def test_what_is_refused(model: InternVLModel, tokenizer: Tokenizer, pixels: Tensor) -> None:
    ids = tokenizer(["summarize:a", "summarize:b"], return_tensors="pt").input_ids
    with pytest.raises(InputError, match="InternVL-C, InternVL-G, not 'G'"):
        model(image=pixels, text=ids, mode="G")
    with pytest.raises(InputError, match="pixel values are missing"):
        model.encode_image(Image.fromarray(np.zeros((4, 4, 3), np.uint8)))  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="tensor of ids"):
        model.encode_text(["a"])  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="empty or has ids outside"):
        model.encode_text(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(PromptError, match="outside the vocabulary of 560"):
        model.encode_text(torch.tensor([[1, 560]]))
    with pytest.raises(PromptError, match="2 pictures need as many prompts, not 1"):
        model.generate(pixels, ids[:1])
    with pytest.raises(InputError, match="unknown setting 'beams'"):
        model.generate(pixels, ids, beams=3)
