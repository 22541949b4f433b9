"""Low-rank adapters: added, switched off, merged."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from internvl.adapt.lora import (
    LoRA,
    LoRALinear,
    adapters,
    adapters_off,
    add_adapter,
    add_adapters,
    merge,
    merge_adapters,
    merged_state,
)
from internvl.adapt.qlora import Int8Linear, quantize_linears
from internvl.errors import InputError
from internvl.models.attention import Packed
from internvl.models.layers import Linear
from internvl.models.vlm import VLM
from tests.checkpoints.tiny import chat_config

KINDS = [
    LoRA(rank=3),
    LoRA(rank=2, alpha=5, rank_stabilized=True),
    LoRA(rank=2, magnitude=True),
]


def test_merging() -> None:
    weight, down, up = torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 2)
    torch.testing.assert_close(merge(weight, down, up, 2.0), weight + 2 * up @ down)


def test_the_merged_state_leaves_the_model_as_it_is() -> None:
    model = VLM(chat_config("qwen2"))
    names = add_adapters(model, [(r"(vit|llm)\.layers\..*", LoRA(rank=2))])
    for module in adapters(model).values():
        nn.init.normal_(module.lora_up)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = merged_state(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(state[f"{names[0]}.weight"], before[f"{names[0]}.weight"])
    merge_adapters(model)
    merged = model.state_dict()
    assert state.keys() == merged.keys()
    assert all(torch.equal(state[name], value) for name, value in merged.items())


def test_a_merged_weight_answers_like_weight_and_adapter() -> None:
    weight, down, up, x = torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 2), torch.randn(3, 4)
    apart = x @ weight.T + 2 * (x @ down.T) @ up.T
    torch.testing.assert_close(x @ merge(weight, down, up, 2.0).T, apart)


def test_half_precision_is_summed_in_float32() -> None:
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    down = torch.full((64, 1), 2.0**-9, dtype=torch.bfloat16)
    up = torch.ones(1, 64, dtype=torch.bfloat16)
    merged = merge(weight, down, up, 1.0)
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 1.125


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Factors as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for module in adapters(model).values():
        for parameter in (module.lora_down, module.lora_up):
            parameter.data.normal_(generator=generator)
        if module.lora_magnitude is not None:
            module.lora_magnitude.data.mul_(1 + torch.rand(module.out_features, generator=generator))


def logits(model: VLM) -> Tensor:
    ids = torch.tensor([1, 5, 7, 2, 9])
    tiles = torch.linspace(-1, 1, 3 * 56 * 56).view(1, 3, 56, 56)
    vision = model.encode_tiles(tiles)[0, :3]
    hidden = model.llm(model.embed(ids, torch.tensor([1, 2, 3]), vision), torch.arange(5), Packed([5]))
    return model.llm.logits(hidden)


def test_alpha_is_twice_the_rank_by_default() -> None:
    assert LoRA(rank=7).scale == 2
    assert LoRA(rank=4, alpha=6).scale == 1.5
    assert LoRA(rank=4, alpha=6, rank_stabilized=True).scale == 3


@pytest.mark.parametrize("values", [{"rank": 0}, {"rank": 10**20}, {"rank": 1, "dropout": 1.0}])
def test_impossible_adapters(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="rank from 1 to 65536 and a dropout in"):
        LoRA(**values)  # type: ignore[arg-type]


def test_lengths_of_zero_rows() -> None:
    model = VLM(chat_config("qwen2")).eval()
    with torch.no_grad():
        model.projector.fc1.weight[3] = 0
    before = logits(model)
    add_adapters(model, [(r"projector\.fc1", LoRA(rank=2, magnitude=True))])
    torch.testing.assert_close(logits(model), before)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), before)


@pytest.mark.parametrize("lora", KINDS)
def test_a_new_adapter_changes_nothing(lora: LoRA) -> None:
    model = VLM(chat_config("qwen2")).eval()
    before = logits(model)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    names = add_adapters(model, [(r"(llm|vit)\.layers\..*|projector\.fc.", lora)])
    assert len(names) == 18
    torch.testing.assert_close(logits(model), before)
    after = dict(model.named_parameters())
    assert all(after[name].requires_grad == was for name, was in trained.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    added = {name.rpartition(".")[2] for name in set(after) - set(trained)}
    assert added == {"lora_down", "lora_up"} | ({"lora_magnitude"} if lora.magnitude else set())


def test_the_first_rule_decides() -> None:
    model = VLM(chat_config("llama"))
    add_adapters(model, [(r"llm\.layers\.0\..*", LoRA(rank=1)), (r"llm\..*", LoRA(rank=4))])
    ranks = {name: module.lora.rank for name, module in adapters(model).items()}
    assert ranks["llm.layers.0.attn.qkv"] == 1
    assert ranks["llm.layers.1.attn.qkv"] == 4


def test_the_generator_decides_the_factors() -> None:
    made = []
    for seed in (1, 1, 2):
        model = VLM(chat_config("llama"))
        add_adapters(model, [(r"llm\..*out", LoRA(rank=2))], torch.Generator().manual_seed(seed))
        made.append(model.llm.layers[0].attn.out.lora_down)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert made[0].abs().max() <= made[0].shape[1] ** -0.5


@pytest.mark.parametrize("lora", KINDS)
@pytest.mark.parametrize("int8", [False, True])
def test_merged_is_unmerged(lora: LoRA, int8: bool) -> None:
    model = VLM(chat_config("qwen2")).eval()
    if int8:
        quantize_linears(model, [r"llm\.layers\..*"])
    names = add_adapters(model, [(r"(llm|vit)\.layers\..*|projector\.fc.", lora)])
    randomize(model)
    expected = logits(model)
    with adapters_off(model):
        assert not torch.allclose(logits(model), expected)
    assert merge_adapters(model) == names
    assert all(type(model.get_submodule(name)) is Linear for name in names)
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=1e-4)


def test_off_means_the_model_before() -> None:
    model = VLM(chat_config("phi3")).eval()
    before = logits(model)
    add_adapters(model, [(r"llm\..*", LoRA(rank=2))])
    randomize(model)
    after = logits(model)
    with adapters_off(model):
        assert torch.equal(logits(model), before)
        with adapters_off(model):
            pass
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), after)


def separate(fused: LoRALinear) -> Sequence[LoRALinear]:
    """The products that a layer fuses, as layers with the same factors."""
    rows = zip(
        fused.weight.split(fused.parts),
        fused.lora_down.split(fused.lora.rank),
        fused.lora_up.split(fused.parts),
        strict=True,
    )
    layers = []
    for weight, down, up in rows:
        base = Linear(weight.shape[1], len(weight), bias=False)
        base.weight = nn.Parameter(weight.detach().clone())
        layer = LoRALinear(base, fused.lora, (len(weight),))
        layer.lora_down, layer.lora_up = (
            nn.Parameter(down.detach().clone()),
            nn.Parameter(up.detach().clone()),
        )
        layers.append(layer)
    return layers


def test_a_fused_layer_is_its_parts() -> None:
    fused = LoRALinear(Linear(6, 10, bias=False), LoRA(rank=2, alpha=3), (4, 3, 3))
    randomize(nn.Sequential(fused))
    parts = separate(fused)
    x = torch.randn(5, 6)
    found, expected = fused(x), torch.cat([layer(x) for layer in parts], -1)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name in ("weight", "lora_down", "lora_up"):
        gradients = [getattr(layer, name).grad for layer in parts]
        torch.testing.assert_close(getattr(fused, name).grad, torch.cat(gradients))


def test_dropout_is_for_training() -> None:
    layer = LoRALinear(Linear(8, 8), LoRA(rank=4, dropout=0.5), (8,))
    randomize(nn.Sequential(layer))
    x = torch.randn(3, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("lora", [LoRA(rank=2), LoRA(rank=2, magnitude=True)])
def test_factors_are_float32_over_a_half_precision_weight(lora: LoRA) -> None:
    layer = LoRALinear(Linear(8, 8, dtype=torch.bfloat16), lora, (8,))
    assert layer.lora_down.dtype == layer.lora_up.dtype == torch.float32
    out = layer(torch.randn(2, 8, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.lora_up.grad is not None
    assert layer.merged_weight().dtype == torch.bfloat16


def test_a_second_adapter_is_refused() -> None:
    model = VLM(chat_config("llama"))
    add_adapters(model, [(r"projector\.fc1", LoRA(rank=2))])
    with pytest.raises(InputError, match=r"projector\.fc1 is a LoRALinear and takes no adapter"):
        add_adapter(model, "projector.fc1", LoRA(rank=2), (24,))


def test_a_copy_has_adapters_of_its_own() -> None:
    model = VLM(chat_config("llama")).eval()
    add_adapters(model, [(r"llm\..*", LoRA(rank=2))])
    randomize(model)
    other = copy.deepcopy(model)
    with adapters_off(other):
        assert not torch.equal(logits(model), logits(other))
    assert torch.equal(logits(model), logits(other))


def test_int8_under_adapters_keeps_its_memory() -> None:
    model = VLM(chat_config("llama"))
    quantize_linears(model, [r"llm\.layers\..*"])
    add_adapters(model, [(r"llm\..*", LoRA(rank=2))])
    module = model.get_submodule("llm.layers.0.mlp.down")
    assert isinstance(module, LoRALinear)
    assert isinstance(module, Int8Linear)
    assert {name for name, _ in module.named_parameters()} == {"lora_down", "lora_up"}
