"""Every row of the zoo at test size: it builds, what it names exists, its weights go out and come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from internvl.checkpoints.layouts import LAYOUTS, family_called
from internvl.checkpoints.load import load_model
from internvl.checkpoints.write import save_model
from internvl.config import ChatConfig, VisionConfig
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vit import VisionTower
from internvl.models.vlm import VLM
from internvl.processing.templates import find_template
from internvl.zoo import CARDS, ModelCard, tiny

ROWS = [card for card in CARDS if card.config is not None]
SAVED_AS = {"hf": "hf", "llava": "llava"}
"""What `save_model` calls the layouts; the others are "official"."""

MAKES = {(card.config, card.layout, card.family): card for card in reversed(ROWS)}
"""Rows that differ in name only are built once."""


def name_of(card: ModelCard) -> str:
    return card.name


def build(card: ModelCard) -> VLM | DualEncoder | VisionTower:
    config = card.config
    assert config is not None
    if isinstance(config, ChatConfig):
        return VLM(tiny(config)).eval()
    model = VisionTower(tiny(config)) if isinstance(config, VisionConfig) else DualEncoder(tiny(config))
    return model.eval()


@pytest.mark.parametrize("card", ROWS, ids=name_of)
def test_what_a_row_names_exists(card: ModelCard) -> None:
    assert card.layout is not None
    assert LAYOUTS[card.layout].kind == card.kind
    if card.family is not None:
        assert family_called(card.family).name == card.family
    if card.template is not None:
        assert find_template(card.template).name == card.template


@pytest.mark.parametrize("card", MAKES.values(), ids=name_of)
def test_a_row_runs(card: ModelCard) -> None:
    model = build(card)
    config = model.config
    vision = config if isinstance(config, VisionConfig) else config.vision
    tiles_N3HW = torch.randn(2, 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        if isinstance(model, VLM):
            features = model.encode_tiles(tiles_N3HW)
            assert features.shape == (2, model.config.tokens_per_tile, model.config.text.width)
        elif isinstance(model, DualEncoder):
            is_generative = model.config.is_generative
            features = model.pool_images(model.vit(tiles_N3HW), generative=is_generative)
            assert features.shape == (2, model.config.embed_dim) == model.embed_texts([[1, 5], [2]]).shape
        else:
            features = model(tiles_N3HW)
            assert features.shape == (2, 1 + vision.grid**2, vision.width)
    assert features.isfinite().all()


@pytest.mark.parametrize("card", MAKES.values(), ids=name_of)
def test_weights_go_out_and_come_back(card: ModelCard, tmp_path: Path) -> None:
    model = build(card)
    assert card.layout is not None
    save_model(
        model,
        model.config,
        tmp_path / "out",
        SAVED_AS.get(card.layout, "official"),
        family=card.family,
        image_token_id=5,
    )
    loaded = load_model(tmp_path / "out")
    assert loaded.config == model.config
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
