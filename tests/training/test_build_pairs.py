"""Dual encoders as a recipe says: from a checkpoint, or joined from a tower and a language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl.adapt.lora import LoRA, adapters
from internvl.checkpoints.adapters import save_adapters
from internvl.checkpoints.load import load_model, load_vision
from internvl.errors import TrainingError
from internvl.models.dual_encoder import DualEncoder
from internvl.models.vlm import VLM
from internvl.training.build import narrow_frozen
from internvl.training.build_pairs import build_pairs
from internvl.training.contrastive_parts import ContrastiveParts
from internvl.training.optim import freeze
from internvl.training.recipe import AdamW, ModelSpec
from tests.conftest import GoldenFixtures

TEXT = r"qllama\.layers\.\d+\.attn\..*"


@pytest.fixture
def own(golden_dir: GoldenFixtures) -> str:
    return str(golden_dir / "internvl_14b")


@pytest.fixture
def chat(golden_dir: GoldenFixtures) -> str:
    return str(golden_dir / "internvl2_5_qwen2")


def joined(chat: str, **options: Any) -> ModelSpec:
    parts = ContrastiveParts(language=chat, num_queries=3, embed_dim=20, pool_heads=4, image_size=56)
    return ModelSpec(checkpoint=chat, contrastive=replace(parts, **options))


def test_from_its_checkpoint(own: str) -> None:
    built = build_pairs(ModelSpec(checkpoint=own, drop_path=0.2, adapters=((TEXT, LoRA(rank=2)),)), 0)
    plain = load_model(own)
    assert str(built.source) == own
    assert set(built.adapted) == set(adapters(built.model))
    assert built.model.config.vision.drop_path == 0.2
    state = built.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


def test_another_size_resizes_the_positions_once(own: str) -> None:
    built = build_pairs(ModelSpec(checkpoint=own, image_size=56), 0)
    config = built.model.config
    assert (config.image_size, config.vision.image_size) == (56, 56)
    assert built.model.vit.embed.position.shape[1] == 1 + 4 * 4
    tiles = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(built.model.vit(tiles), load_vision(own)(tiles))
    with pytest.raises(TrainingError, match="image_size 60 is no multiple of 14"):
        build_pairs(ModelSpec(checkpoint=own, image_size=60), 0)


def test_joined_from_a_tower_and_a_language_model(chat: str) -> None:
    built = build_pairs(joined(chat), 1)
    model, start = built.model, load_model(chat)
    assert isinstance(start, VLM)
    assert built.source is None
    assert (model.config.num_queries, model.config.embed_dim, model.config.text) == (3, 20, start.config.text)
    state = model.state_dict()
    for name, value in start.llm.state_dict().items():
        assert torch.equal(state[f"qllama.{name}"], value)
    assert torch.equal(
        state["vit.layers.1.mlp.fc1.weight"], start.vit.state_dict()["layers.1.mlp.fc1.weight"]
    )
    queries = model.generator.queries
    assert float(queries.detach().std()) == pytest.approx(
        float(start.llm.embed.weight.detach().std()), rel=0.3
    )


def test_what_is_new_depends_on_the_seed_alone(chat: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.rand(seed + 5)
        states.append(build_pairs(joined(chat), seed).model.state_dict())
    differing = {name for name, value in states[0].items() if not torch.equal(value, states[2][name])}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert {
        "qllama.queries",
        "text_projection",
        "image_pool.q.weight",
        "qllama.layers.0.cross.q.weight",
    } <= differing
    assert not any(name.startswith("vit.") or ".mlp." in name for name in differing)


def test_without_queries_it_is_mode_c_alone(chat: str) -> None:
    model = build_pairs(joined(chat, num_queries=0), 0).model
    assert not model.config.is_generative
    assert not any("cross" in name or "head" in name or "quer" in name for name in model.state_dict())


def test_frozen_weights_may_be_narrower(chat: str) -> None:
    model = build_pairs(replace(joined(chat), frozen_dtype="bfloat16"), 0).model
    freeze(model, ((r"qllama\.queries", AdamW(lr=1.0)), (".*", None)))
    narrow_frozen(model, "bfloat16")
    trained = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert trained == {"qllama.queries"}
    assert {value.dtype for value in model.parameters()} == {torch.float32, torch.bfloat16}


def test_adapters_of_a_run_before(own: str, tmp_path: Path) -> None:
    """Training goes on with their values and with all that was trained beside them."""
    spec = ModelSpec(checkpoint=own, adapters=((TEXT, LoRA(rank=2)),))
    before = build_pairs(spec, 1).model
    beside = ["image_pool.q.weight", "text_projection", "logit_scale", "qllama.queries"]
    with torch.no_grad():
        for name, value in before.named_parameters():
            if ".lora_" in name or name in beside:
                value.add_(0.5)
    save_adapters(before, tmp_path / "adapter", trained=beside)
    built = build_pairs(replace(spec, adapter=str(tmp_path / "adapter")), 2)
    assert set(built.adapted) == set(adapters(before))
    state = built.model.state_dict()
    assert [name for name, value in before.state_dict().items() if not torch.equal(state[name], value)] == []
    with pytest.raises(TrainingError, match=r"differ from model\.adapters.*rank 2,.*rank 4,"):
        build_pairs(replace(spec, adapter=str(tmp_path / "adapter"), adapters=((TEXT, LoRA(rank=4)),)), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select_layer": -2}, r"model\.select_layer is a setting of chat models"),
        ({"int8": (TEXT,)}, r"model\.int8 is a setting of chat models"),
        ({"fresh_projector": True}, "fresh_projector"),
    ],
)
def test_settings_of_chat_models_are_refused(own: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        build_pairs(replace(ModelSpec(checkpoint=own), **changes), 0)


def test_checkpoints_that_do_not_fit(own: str, chat: str, golden_dir: GoldenFixtures) -> None:
    with pytest.raises(TrainingError, match="no InternVL-C or -G"):
        build_pairs(ModelSpec(checkpoint=chat), 0)
    with pytest.raises(TrainingError, match="neither a language model nor a chat model"):
        build_pairs(joined(chat, language=own), 0)
    with pytest.raises(TrainingError, match="num_queries is not negative"):
        joined(chat, num_queries=-1)
    with pytest.raises(TrainingError, match="pool_heads counts from 1"):
        joined(chat, pool_heads=0)


def test_it_is_a_dual_encoder_in_evaluation_mode(chat: str) -> None:
    model = build_pairs(joined(chat), 0).model
    assert isinstance(model, DualEncoder)
    assert not model.training
