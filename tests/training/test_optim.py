"""Parameter groups from ordered patterns, and the schedule of the learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from internvl.errors import InputError, TrainingError
from internvl.models.vlm import VLM
from internvl.training.optim import freeze, lr_scale, make_optimizer, set_rates
from internvl.training.recipe import AdamW, Rule, Schedule
from tests.training.dual import dual_encoder

FROZEN: Rule = (".*", None)


def settings(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> tuple[float, float]:
    """(learning rate, weight decay) of a parameter."""
    parameter = model.get_parameter(name)
    (group,) = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    assert group["lr"] == group["peak"]
    return group["lr"], group["weight_decay"]


def test_the_first_rule_that_matches_decides(model: VLM) -> None:
    rules: tuple[Rule, ...] = (
        (r"llm\.layers\.1\..*", None),
        (r"llm\.layers\..*", AdamW(lr=1e-3, betas=(0.8, 0.9), eps=1e-5)),
        (r"projector\..*", AdamW(lr=2e-3)),
        FROZEN,
    )
    optimizer = make_optimizer(model, rules)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith(("llm.layers.0.", "projector."))
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    assert settings(model, optimizer, "llm.layers.0.mlp.down.weight")[0] == 1e-3
    assert settings(model, optimizer, "projector.fc1.weight")[0] == 2e-3
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        ((0.8, 0.9), 1e-5),
        ((0.9, 0.999), 1e-8),
    }


def test_a_frozen_model_can_be_trained_again(model: VLM) -> None:
    freeze(model.requires_grad_(False), ((r"llm\..*", AdamW(lr=1.0)), FROZEN))
    assert all(p.requires_grad == name.startswith("llm.") for name, p in model.named_parameters())


def test_norms_biases_and_scales_are_not_decayed(model: VLM) -> None:
    optimizer = make_optimizer(model, ((".*", AdamW(lr=1e-3, weight_decay=0.1)),))
    decays = {name: settings(model, optimizer, name)[1] for name, _ in model.named_parameters()}
    free = {name.split(".")[-2] + "." + name.split(".")[-1] for name, decay in decays.items() if not decay}
    assert {"norm1.weight", "norm1.bias", "fc1.bias", "qkv.bias", "0.ls1", "norm.weight"} <= free
    assert decays["llm.layers.0.attn.qkv.weight"] == decays["llm.embed.weight"] == 0.1
    assert set(decays.values()) == {0.0, 0.1}


def test_early_layers_learn_slower(model: VLM) -> None:
    """Two layers in each stack; what lies outside of the stacks learns at the full rate."""
    rules = (
        (r"vit\..*", AdamW(lr=1.0, layer_decay=0.5)),
        (".*", AdamW(lr=1.0, layer_decay=0.1)),
    )
    optimizer = make_optimizer(model, rules)
    rates = {name: settings(model, optimizer, name)[0] for name, _ in model.named_parameters()}
    assert rates["vit.layers.1.attn.qkv.weight"] == 0.5
    assert rates["vit.layers.0.attn.qkv.weight"] == rates["vit.layers.0.norm1.weight"] == 0.25
    assert rates["vit.embed.position"] == 0.125
    assert rates["llm.layers.1.mlp.down.weight"] == pytest.approx(0.1)
    assert rates["llm.layers.0.mlp.down.weight"] == pytest.approx(0.01)
    assert rates["llm.embed.weight"] == pytest.approx(0.001)
    assert rates["llm.norm.weight"] == rates["llm.head.weight"] == rates["projector.fc1.weight"] == 1.0


def test_query_tokens_learn_as_embeddings_do() -> None:
    """Of a dual encoder; cross attention belongs to its block, what compares lies outside of the stacks."""
    model = dual_encoder()
    optimizer = make_optimizer(model, ((".*", AdamW(lr=1.0, weight_decay=0.5, layer_decay=0.1)),))
    found = {name: settings(model, optimizer, name) for name, _ in model.named_parameters()}
    rates = {name: values[0] for name, values in found.items()}
    assert rates["qllama.queries"] == rates["qllama.embed.weight"] == pytest.approx(0.001)
    assert (
        rates["qllama.layers.0.cross.kv.weight"] == rates["vit.layers.0.norm1.weight"] == pytest.approx(0.01)
    )
    assert rates["image_pool.q.weight"] == rates["text_projection"] == rates["itm_head.weight"] == 1.0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r"projector\..*", AdamW(lr=1.0)),), r"no rule names \d+ parameters, first vit\.embed"),
        (((r"projectr\..*", AdamW(lr=1.0)), FROZEN), "projectr.*matches none"),
        ((FROZEN,), r"every parameter is frozen by \['\.\*'\]"),
        ((("(", None), FROZEN), "not a regular expression"),
    ],
)
def test_wrong_rules_are_named(model: VLM, rules: tuple[Rule, ...], message: str) -> None:
    with pytest.raises((TrainingError, InputError), match=message):
        make_optimizer(model, rules)


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(kind="constant"), {0: 1.0, 50: 1.0, 99: 1.0}),
        (Schedule(kind="constant", warmup=4), {0: 0.2, 3: 0.8, 4: 1.0, 99: 1.0}),
        (Schedule(kind="cosine"), {0: 1.0, 50: 0.5, 100: 0.0}),
        (Schedule(kind="cosine", warmup=20), {0: 1 / 21, 19: 20 / 21, 20: 1.0, 60: 0.5, 100: 0.0}),
        (Schedule(kind="cosine", warmup=0.2), {0: 1 / 21, 20: 1.0, 40: cosine(0.25)}),
        (Schedule(kind="cosine", final=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (Schedule(kind="wsd", warmup=10, decay=0.2), {10: 1.0, 80: 1.0, 90: 0.5, 95: 0.25, 100: 0.0}),
        (Schedule(kind="wsd", decay=0.5, final=0.1), {0: 1.0, 50: 1.0, 75: 0.55, 100: 0.1}),
        (Schedule(kind="wsd", decay=0.0), {0: 1.0, 99: 1.0}),
        (Schedule(kind="cosine", warmup=200), {0: 1 / 201, 99: 100 / 201}),
    ],
)
def test_schedules(schedule: Schedule, expected: dict[int, float]) -> None:
    found = {step: lr_scale(step, 100, schedule) for step in expected}
    assert found == pytest.approx(expected)


def test_rates_are_set_in_every_group(model: VLM) -> None:
    rules = ((r"projector\..*", AdamW(lr=1e-3)), (r"llm\.head\..*", AdamW(lr=2e-3)), FROZEN)
    optimizer = make_optimizer(model, rules)
    assert set_rates(optimizer, 0.5) == 1e-3
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4, 1e-3}
    assert set_rates(optimizer, 1.0) == 2e-3
