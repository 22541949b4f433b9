"""One side of a contrastive checkpoint: the same vectors, and nothing else is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from internvl.checkpoints.encoders import load_image_encoder, load_text_encoder
from internvl.checkpoints.load import load_model
from internvl.checkpoints.weight_files import SafeTensor
from internvl.errors import ConfigError, WeightsError
from internvl.models.dual_encoder import DualEncoder
from tests.checkpoints.tiny import chat_config, write_official
from tests.checkpoints.tiny_contrastive import PAIR, official_state, write_original, write_pair

TEXTS = [[1, 5, 7, 2], [1, 9, 2]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the tensors whose values were read."""
    names: set[str] = set()
    reading = SafeTensor._read

    def spy(self: SafeTensor, out: Tensor, start: int) -> Tensor:
        names.add(self.name)
        return reading(self, out, start)

    monkeypatch.setattr(SafeTensor, "_read", spy)
    return names


def whole(path: Path) -> DualEncoder:
    model = load_model(path)
    assert isinstance(model, DualEncoder)
    return model


def test_the_text_side(tmp_path: Path, read: set[str]) -> None:
    write_pair(tmp_path)
    encoder = load_text_encoder(tmp_path)
    assert "text_projection" in read
    assert {name.split(".")[0] for name in read - {"text_projection"}} == {"qllama"}
    assert not any("cross_attn" in name or "lm_head" in name for name in read)
    assert not encoder.training
    assert not encoder.config.is_generative
    with torch.no_grad():
        assert torch.equal(encoder.embed_texts(TEXTS), whole(tmp_path).embed_texts(TEXTS))


def test_the_image_side(tmp_path: Path, read: set[str]) -> None:
    write_pair(tmp_path)
    encoder = load_image_encoder(tmp_path)
    assert {name.split(".")[0] for name in read} == {"vision_model", "clip_projector"}
    assert encoder.config == PAIR
    tiles, model = torch.randn(2, 3, 56, 56), whole(tmp_path)
    with torch.no_grad():
        found, expected = (one.pool_images(one.vit(tiles)) for one in (encoder, model))
    assert torch.equal(found, expected)
    with pytest.raises(ConfigError, match="for mode G load the whole model"):
        encoder.pool_images(torch.zeros(1, 17, 16), generative=True)


def test_both_sides_of_the_pth_file(tmp_path: Path) -> None:
    state = write_original(tmp_path / "c.pth")
    text, image = load_text_encoder(tmp_path / "c.pth"), load_image_encoder(tmp_path / "c.pth")
    assert torch.equal(text.text_projection, state["text_projection"])
    assert torch.equal(image.image_pool.q.bias, state["clip_projector.cross_attn.q_bias"])


def test_damage_on_the_other_side_does_not_matter(tmp_path: Path) -> None:
    state = official_state()
    state["vision_model.embeddings.class_embedding"].fill_(torch.nan)
    del state["itm_head.bias"]
    write_pair(tmp_path, state=state)
    assert load_text_encoder(tmp_path, dtype="bfloat16").text_projection.dtype == torch.bfloat16
    with pytest.raises(WeightsError, match=r"vision_model\.embeddings\.class_embedding holds NaN"):
        load_image_encoder(tmp_path)


def test_damage_on_its_own_side_is_named(tmp_path: Path) -> None:
    state = official_state()
    del state["qllama.model.layers.1.self_attn.k_proj.weight"]
    write_pair(tmp_path, state=state)
    with pytest.raises(WeightsError, match=r"1 missing: qllama\.model\.layers\.1\.self_attn\.k_proj\.weight"):
        load_text_encoder(tmp_path)
    load_image_encoder(tmp_path)


@pytest.mark.parametrize("load", [load_text_encoder, load_image_encoder])
def test_other_models_have_no_sides(load: object, tmp_path: Path) -> None:
    write_official(tmp_path, chat_config("qwen2"), "qwen2")
    with pytest.raises(ConfigError, match="is a chat model: only a contrastive one has a text side"):
        load(tmp_path)  # type: ignore[operator]
