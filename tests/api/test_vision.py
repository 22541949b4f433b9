"""InternViT alone, from pictures to features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import internvl
from internvl import VisionModel
from internvl.errors import ImageError, InputError
from tests.api.conftest import noise


@pytest.fixture(scope="module")
def tower(golden_dir: Path) -> VisionModel:
    model = internvl.load(golden_dir / "internvit_300m")
    assert isinstance(model, VisionModel)
    return model


def test_features(tower: VisionModel) -> None:
    pictures = [noise(100, 80), noise(70, 70), noise(90, 200)]
    features = tower.features(pictures)
    assert features.last_hidden_state.shape == (3, 26, 48)
    assert torch.equal(features.pooled, features.last_hidden_state[:, 0])
    one = tower.features(pictures[1])
    torch.testing.assert_close(one.pooled[0], features.pooled[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        tower.features(pictures, batch=1).pooled, features.pooled, atol=1e-5, rtol=1e-5
    )


def test_layers(tower: VisionModel) -> None:
    states = tower.vision_states(tower.prepare(noise(70, 70)))
    for layer in (0, 2, -1, -2):
        assert torch.allclose(
            tower.features(noise(70, 70), layer=layer).last_hidden_state, states[layer], atol=1e-5
        )


def test_bad_input(tower: VisionModel) -> None:
    with pytest.raises(ImageError):
        tower.features(b"no picture")
    with pytest.raises(ImageError, match="at least one"):
        tower.features([])
    with pytest.raises(InputError, match="hidden state 9"):
        tower.features(noise(70, 70), layer=9)
