"""What recipes share, on the names of a model."""

from __future__ import annotations

import re

import pytest

from internvl.adapt.lora import LoRA, add_adapters
from internvl.recipes import finetune, parts
from internvl.recipes.nano import TUNED_BLOCKS
from internvl.training.optim import freeze
from internvl.training.recipe import AdamW, Rule
from tests.training.tiny import chat_model

SETTINGS = AdamW(lr=1e-3)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (parts.everything(SETTINGS), r".*"),
        (parts.all_but_tower(SETTINGS), r"(projector|llm)\..*"),
        (parts.all_but_language(SETTINGS), r"(projector|vit)\..*"),
        (parts.projector(SETTINGS), r"projector\..*"),
        (parts.adapters(SETTINGS), r".*\.lora_(up|down|magnitude)"),
    ],
)
def test_rules_train_what_they_say(rules: tuple[Rule, ...], expected: str) -> None:
    model = chat_model()
    add_adapters(model, [(finetune.LANGUAGE, LoRA(rank=2, magnitude=True))])
    freeze(model, rules)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(re.fullmatch(expected, name)), name


def test_targets_of_adapters_are_the_products_of_all_layers() -> None:
    model = chat_model()
    language = add_adapters(model, [(finetune.LANGUAGE, LoRA(rank=2))])
    tower = add_adapters(model, [(finetune.TOWER, LoRA(rank=2))])
    products = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
    assert set(language) == {f"llm.layers.{i}.{product}" for i in range(2) for product in products}
    assert set(tower) == {
        f"vit.layers.{i}.{product}"
        for i in range(2)
        for product in ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")
    }


def test_nanos_upper_blocks() -> None:
    assert [i for i in range(12) if re.fullmatch(TUNED_BLOCKS, f"vit.layers.{i}.ls1")] == list(range(5, 12))
