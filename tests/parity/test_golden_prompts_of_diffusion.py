"""States for diffusion models against the recorded text encoder, padded positions included."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from internvl.api.contrastive import TextModel
from internvl.checkpoints.load import load_model
from internvl.checkpoints.read import read_json
from internvl.integrations.diffusion import encode_prompts
from internvl.models.dual_encoder import DualEncoder
from internvl.processing.texts import TextProcessor
from internvl.processing.tokenizer import load_tokenizer
from tests.conftest import GoldenFixtures

FIXTURE = "internvl_14b"


@pytest.fixture
def model(golden_dir: GoldenFixtures) -> TextModel:
    encoder = load_model(golden_dir / FIXTURE)
    assert isinstance(encoder, DualEncoder)
    return TextModel(encoder, TextProcessor(load_tokenizer(golden_dir / FIXTURE)))


def test_states_mask_and_pooled_text(model: TextModel, golden_dir: GoldenFixtures) -> None:
    settings = read_json(golden_dir / FIXTURE / "expected.json")["settings"]
    expected = load_file(golden_dir / FIXTURE / "expected.safetensors")
    captions, length = settings["captions"], settings["max_length"]  # type: ignore[index, call-overload]
    found = encode_prompts(model, captions, length=length, keep_prefix=True)
    assert torch.equal(found.mask_BL, expected["text_input_ids"] > 0)
    torch.testing.assert_close(
        found.states_BLD, expected["text_last_hidden_state"].to(torch.float32), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(found.pooled_BE, expected["C.text_features"], atol=1e-4, rtol=1e-4)

    dropped = encode_prompts(model, captions, length=length - 7)  # seven tokens spell the prefix here
    kept = expected["text_last_hidden_state"][:, [0, *range(8, length)]]
    torch.testing.assert_close(dropped.states_BLD, kept, atol=1e-4, rtol=1e-4)
