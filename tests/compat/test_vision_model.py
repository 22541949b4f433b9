"""The published call of a tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import internvl
from internvl.compat import AutoModel, InternVisionModel
from internvl.errors import InputError


@pytest.fixture(scope="module")
def tower(golden_dir: Path) -> InternVisionModel:
    loaded = AutoModel.from_pretrained(golden_dir / "internvit_300m", torch_dtype="auto").eval()
    assert isinstance(loaded, InternVisionModel)
    return loaded


def test_ways_to_read_the_output(tower: InternVisionModel) -> None:
    pixels = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        outputs = tower(pixels)
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        last, pooled = tower(pixels, return_dict=False)
    assert outputs.hidden_states is None
    assert torch.equal(outputs[0], outputs.last_hidden_state)
    assert torch.equal(outputs["pooler_output"], outputs[1])
    assert torch.equal(last, states[-1])
    assert torch.equal(pooled, last[:, 0])
    assert len(states) == tower.config.num_hidden_layers + 1
    assert tower.config.image_size == 70


def test_gradients_as_the_caller_has_them(tower: InternVisionModel) -> None:
    pixels = torch.randn(1, 3, 70, 70, requires_grad=True)
    tower(pixels).pooler_output.sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.abs().sum() > 0)


def test_saved_and_loaded(tower: InternVisionModel, tmp_path: Path) -> None:
    tower.save_pretrained(tmp_path / "saved")
    pixels = torch.randn(1, 3, 70, 70)
    again = internvl.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.vision_states(pixels)[-1], tower(pixels).last_hidden_state)


def test_wrong_calls(tower: InternVisionModel) -> None:
    with pytest.raises(InputError, match="pixel_values is missing"):
        tower()
    with pytest.raises(InputError, match="patch size"):
        tower(torch.zeros(1, 3, 71, 70))
