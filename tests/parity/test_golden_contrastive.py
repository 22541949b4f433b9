"""InternVL-C and -G against the recorded features, logits, matches and captions, by our API and by compat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import internvl
from internvl import ContrastiveModel
from internvl.compat import AutoModel, AutoTokenizer, InternVLModel

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
CAPTIONS = ("greedy", "greedy_batch", "beams2", "beams2_batch", "beams5_min8", "beams5_min8_batch")


class Golden:
    """The fixture as we load it and as a published script does, and what the reference gave."""

    def __init__(self, folder: Path) -> None:
        model = internvl.load(folder)
        assert isinstance(model, ContrastiveModel)
        self.model = model
        self.script = AutoModel.from_pretrained(
            str(folder), torch_dtype=torch.float32, low_cpu_mem_usage=True, trust_remote_code=True
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=False, add_eos_token=True)
        self.tokenizer.pad_token_id = 0
        self.values: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "expected.safetensors")
        self.captions: list[str] = self.values["settings"]["captions"]

    def pixels(self, name: str = "_batch") -> Tensor:
        """Of all pictures, or of the first one for a call that is no batch."""
        return self.tensors["pixel_values"][: None if name.endswith("_batch") else 1]

    def settings(self, name: str) -> dict[str, Any]:
        return dict(self.values["generate"][name]["generation_config"])


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir / "internvl_14b")


@pytest.mark.parametrize("mode", ["C", "G"])
def test_features_and_logits(golden: Golden, mode: Any) -> None:
    expected, pixels = golden.tensors, golden.pixels()
    images_BE = golden.model.embed_images(pixels, mode)
    texts_BE = golden.model.embed_texts(golden.captions)
    torch.testing.assert_close(images_BE, expected[f"{mode}.image_features"], **CLOSE)
    torch.testing.assert_close(texts_BE, expected[f"{mode}.text_features"], **CLOSE)
    logits = golden.model.logits(pixels, golden.captions, mode)
    torch.testing.assert_close(logits, expected[f"{mode}.logits_per_image"], **CLOSE)


def test_states(golden: Golden) -> None:
    expected, encoder = golden.tensors, golden.model.encoder
    with torch.inference_mode():
        features_BPC = golden.model.encode_tiles(golden.pixels())
        torch.testing.assert_close(features_BPC, expected["vit.last_hidden_state"], **CLOSE)
        torch.testing.assert_close(encoder.query_states(features_BPC), expected["query_features"], **CLOSE)
        ids = [golden.model.processor.ids(text) for text in golden.captions]
        for states_TD, padded_TD in zip(
            encoder.text_states(ids), expected["text_last_hidden_state"], strict=True
        ):
            torch.testing.assert_close(states_TD, padded_TD[: len(states_TD)], **CLOSE)


def test_matching_gives_the_recorded_loss(golden: Golden) -> None:
    """Of the batch of stage 2 the first half are pairs that do not belong together."""
    pixels, tensors = golden.pixels(), golden.tensors
    captions, others = golden.captions, golden.values["settings"]["negatives"]
    found_B = golden.model.match(pixels, [*others[:2], *captions[2:]])
    scores_B2 = torch.stack((1 - found_B, found_B), dim=1).log()
    loss = cross_entropy(scores_B2, torch.tensor([0, 0, 1, 1])).item()
    assert loss == pytest.approx(golden.values["train"]["stage2"]["loss_itm"], abs=2e-5)
    assert len(tensors["pixel_values"]) == 4


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(golden: Golden, name: str) -> None:
    settings = {"min_new_tokens": 0, **golden.settings(name)}
    del settings["do_sample"]
    expected = golden.values["generate"][name]["text_skip_special"]
    assert golden.model.caption(golden.pixels(name), **settings) == [text.strip() for text in expected]
    one = golden.model.caption(golden.pixels(name), batch=1, **settings)
    assert one == [text.strip() for text in expected]


@pytest.mark.parametrize("mode", ["C", "G"])
def test_logits_of_a_published_script(golden: Golden, mode: str) -> None:
    model, tensors = golden.script, golden.tensors
    assert isinstance(model, InternVLModel)
    texts = ["summarize:" + text for text in golden.captions]
    golden.tokenizer.add_eos_token = True
    input_ids = golden.tokenizer(
        texts, return_tensors="pt", max_length=40, truncation=True, padding="max_length"
    ).input_ids
    assert torch.equal(input_ids, tensors["text_input_ids"])
    with torch.no_grad():
        per_image, per_text = model(image=golden.pixels(), text=input_ids, mode=f"InternVL-{mode}")
        encoded = model.encode_image(golden.pixels(), mode=f"InternVL-{mode}")
    torch.testing.assert_close(per_image, tensors[f"{mode}.logits_per_image"], **CLOSE)
    torch.testing.assert_close(per_text, tensors[f"{mode}.logits_per_text"], **CLOSE)
    torch.testing.assert_close(encoded, tensors[f"{mode}.image_features"], **CLOSE)
    torch.testing.assert_close(
        model.encode_text(input_ids).detach(), tensors[f"{mode}.text_features"], **CLOSE
    )


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_of_a_published_script(golden: Golden, name: str) -> None:
    golden.tokenizer.add_eos_token = False
    pixels, expected = golden.pixels(name), golden.values["generate"][name]
    tokenized = golden.tokenizer([golden.values["settings"]["gen_prompt"]] * len(pixels), return_tensors="pt")
    assert tokenized.input_ids[0].tolist() == golden.values["settings"]["gen_prompt_ids"]
    found = golden.script.generate(
        pixel_values=pixels,
        input_ids=tokenized.input_ids,
        attention_mask=tokenized.attention_mask,
        use_cache=True,
        **golden.settings(name),
    )
    assert found.tolist() == expected["new_token_ids"]
    texts = [golden.tokenizer.decode(row, skip_special_tokens=True) for row in found]
    assert texts == expected["text_skip_special"]
