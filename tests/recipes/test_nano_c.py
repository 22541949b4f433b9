"""nano-c's stages: what each may change of the model that the stage before left."""

from __future__ import annotations

import re

import pytest
import torch

from internvl.adapt.lora import add_adapters
from internvl.checkpoints import nano
from internvl.checkpoints.load import build
from internvl.recipes import nano_c
from internvl.training.optim import freeze
from internvl.training.recipe import Recipe

FACTORS = re.compile(r"qllama\.layers\.(\d+)\.(attn|mlp)\.\w+\.lora_(up|down)")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """nano-c with the adapters of stage 1; it has shapes and no values."""
    model = build(nano.config("nano-c"))
    with torch.device("meta"):
        add_adapters(model, nano_c.compare().model.adapters)
    return model


def learnt(model: torch.nn.Module, recipe: Recipe) -> set[str]:
    freeze(model, recipe.params)
    return {name for name, value in model.named_parameters() if value.requires_grad}


def test_first_texts_come_to_the_pictures(model: torch.nn.Module) -> None:
    names = learnt(model, nano_c.compare())
    layers = {int(found[1]) for name in names if (found := FACTORS.fullmatch(name))}
    assert layers == set(range(30))
    assert not any(".cross." in name or name.startswith(("vit.", "query_pool.")) for name in names)
    assert {"text_projection", "logit_scale", "image_pool.q.weight"} <= names


def test_then_the_queries_alone(model: torch.nn.Module) -> None:
    names = learnt(model, nano_c.query())
    assert {"qllama.queries", "qllama.layers.25.cross.kv.weight", "itm_head.weight", "logit_scale"} <= names
    assert not any(".lora_" in name or name.startswith(("vit.", "image_pool.")) for name in names)


def test_the_first_stage_goes_on_in_the_upper_half(model: torch.nn.Module) -> None:
    first, then = learnt(model, nano_c.compare()), learnt(model, nano_c.compare_on())
    layers = {int(found[1]) for name in then if (found := FACTORS.fullmatch(name))}
    assert layers == set(range(15, 30))
    below = {name for name in first if (found := FACTORS.fullmatch(name)) and int(found[1]) < 15}
    assert first - then == below
    assert not then - first
