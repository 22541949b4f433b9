"""The digest of weights: other values, names or packed weights give another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internvl.adapt.quantize import quantize
from internvl.checkpoints.digest import weights_digest
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
