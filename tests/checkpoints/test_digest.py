"""The digest of weights: other values, names or packed weights give another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internvl.adapt.lora import LoRA, add_adapters
from internvl.adapt.quantize import quantize
from internvl.checkpoints.digest import model_digest, weights_digest
from internvl.models.layers import Linear

WEIGHTS = {"a": torch.arange(1000.0).view(10, 100), "b": torch.tensor(2.0), "c": torch.empty(0, 4)}


def digest(weights: dict[str, Tensor]) -> str:
    return weights_digest(weights.items())


def test_names_and_values_count() -> None:
    assert len(digest(WEIGHTS)) == 32
    assert digest(WEIGHTS) == digest({name: value.clone() for name, value in WEIGHTS.items()})
    others = [
        {**WEIGHTS, "a": WEIGHTS["a"] + 1},
        {**WEIGHTS, "b": torch.tensor(3.0)},
        {"other": WEIGHTS["a"], **{name: WEIGHTS[name] for name in "bc"}},
        {name: WEIGHTS[name] for name in "ab"},
    ]
    assert len({digest(weights) for weights in (WEIGHTS, *others)}) == 5


def test_tensors_are_read_when_it_is_their_turn() -> None:
    held: list[str] = []

    def read() -> object:
        for name, value in WEIGHTS.items():
            held.append(name)
            yield name, value.to(torch.float64)

    assert weights_digest(read()) == digest(WEIGHTS)  # type: ignore[arg-type]
    assert held == list(WEIGHTS)


def test_packed_weights_count() -> None:
    def packed(seed: int, scheme: str) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = nn.Sequential(Linear(64, 32, bias=False))
        quantize(model, [(r".*", scheme)])  # type: ignore[list-item]
        assert not list(model.parameters())
        return model.state_dict()

    for scheme in ("float32", "bfloat16", "int8", "int4"):
        assert digest(packed(1, scheme)) == digest(packed(1, scheme))
        assert digest(packed(1, scheme)) != digest(packed(2, scheme))


def adapted(*rules: tuple[str, LoRA]) -> nn.Sequential:
    model = nn.Sequential(Linear(8, 4), Linear(4, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    add_adapters(model, rules, torch.Generator().manual_seed(1))
    return model


def test_scales_of_adapters_count() -> None:
    """They are in no tensor: the same factors mean something else under another alpha."""
    rules = (LoRA(rank=4), LoRA(rank=4, alpha=9), LoRA(rank=4, rank_stabilized=True))
    models = [adapted((r".*", lora)) for lora in rules]
    assert len({weights_digest(model.state_dict().items()) for model in models}) == 1
    assert len({model_digest(model) for model in models}) == 3
    same = adapted((r".*", LoRA(rank=4, alpha=8, dropout=0.5)))
    assert model_digest(same) == model_digest(models[0])
    first, second = (adapted((where, LoRA(rank=4, alpha=9)), (r".*", LoRA(rank=4))) for where in "01")
    assert model_digest(first) != model_digest(second)


def test_only_what_is_asked_for_counts() -> None:
    plain, model = adapted(), adapted((r"1", LoRA(rank=4)))
    assert model_digest(plain) == weights_digest(plain.state_dict().items())
    assert model_digest(model, ("0.",)) == model_digest(plain, ("0.",)) != model_digest(plain)
    assert model_digest(model, ("1.",)) != model_digest(adapted((r"1", LoRA(rank=4, alpha=9))), ("1.",))
