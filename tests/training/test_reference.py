"""Reference log-probabilities: a model at rest, a frozen copy, and a file of stored ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters
from internvl.data.example import Example
from internvl.errors import TrainingError
from internvl.models.layers import DropPath
from internvl.models.vlm import VLM
from internvl.training.forward import trained_states
from internvl.training.reference import Reference, log_probs, quiet_log_probs, store
from tests.training.tiny import batch, examples


def test_log_probabilities_are_sums_over_the_trained_tokens_of_a_branch(model: VLM) -> None:
    packed = batch()
    hidden_AD = trained_states(model, packed)
    each_A = model.llm.logits(hidden_AD).detach().log_softmax(-1).gather(1, packed.targets_A[:, None])[:, 0]
    expected = [float(each_A[packed.branches_A == index].sum()) for index in range(packed.num_branches)]
    assert log_probs(model, hidden_AD, packed).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_model_at_rest_drops_nothing_and_goes_on_as_it_was(model: VLM) -> None:
    expected_B = quiet_log_probs(model.eval(), batch())
    add_adapters(model, [(r"llm\.layers\..*", LoRA(rank=2, dropout=0.5))])
    model.train()
    for module in model.vit.modules():
        if isinstance(module, DropPath):
            module.rate = 0.5
    model.projector.eval()
    assert torch.equal(quiet_log_probs(model, batch()), expected_B)
    assert model.training
    assert all(module.training for module in model.vit.modules())
    assert not model.projector.training


def test_a_copy_does_not_follow_the_model(model: VLM) -> None:
    before_B = quiet_log_probs(model, batch())
    reference = Reference(model)
    with torch.no_grad():
        model.llm.embed.weight.add_(1)
    assert torch.equal(reference(batch()), before_B)
    assert not torch.equal(quiet_log_probs(model, batch()), before_B)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def rows(*chosen: Example) -> Iterator[tuple[dict[str, Any], Example]]:
    for example in chosen:
        yield {"image": f"{example.key}.jpg", "question": "Qué?"}, example


def test_stored_rows_are_the_rows_with_two_numbers_more(model: VLM, tmp_path: Path) -> None:
    pair = examples()[1]
    assert store(model, rows(pair, pair), tmp_path / "pairs.jsonl") == 2
    text = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8")
    written = [json.loads(line) for line in text.splitlines()]
    chosen, rejected = quiet_log_probs(model, batch(pair)).tolist()
    assert "Qué?" in text
    assert written == 2 * [
        {
            "image": "two.jpg",
            "question": "Qué?",
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
    ]


def test_a_row_that_is_no_pair_leaves_no_file(model: VLM, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"three: .* two finite ones"):
        store(model, rows(examples()[1], examples()[0]), tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()


def test_log_probabilities_that_are_not_finite_are_not_stored(model: VLM, tmp_path: Path) -> None:
    with torch.no_grad():
        model.llm.head.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"odd: .*nan"):
        store(model, rows(replace(examples()[1], key="odd")), tmp_path / "pairs.jsonl")
