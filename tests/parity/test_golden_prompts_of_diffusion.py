"""States for diffusion models against the recorded text encoder, padded positions included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import internvl
from internvl.api.contrastive import TextModel
from internvl.api.load import load_texts
from internvl.checkpoints.read import read_json
from internvl.integrations.diffusion import encode_prompts
from tests.conftest import GoldenFixtures

FIXTURE = "internvl_14b"


@pytest.mark.parametrize("load", [internvl.load, load_texts], ids=["whole model", "text side alone"])
def test_states_mask_and_pooled_text(load: Callable[[Path], TextModel], golden_dir: GoldenFixtures) -> None:
    model = load(golden_dir / FIXTURE)
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
