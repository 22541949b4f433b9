"""Losses that can be summed: weights, and sums over any division of the examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from internvl.adapt.lora import LoRA, add_adapters
from internvl.data.example import Branch, Example
from internvl.errors import TrainingError
from internvl.models.vlm import VLM
from internvl.training.forward import trained_states
from internvl.training.loss import Loss
from internvl.training.objective_spec import NextToken, Preference
from internvl.training.objectives import (
    MixedPreference,
    Reduction,
    make_objective,
    next_token,
    token_weights,
)
from tests.training.tiny import batch, branch, examples

REDUCTIONS: tuple[Reduction, ...] = ("token", "sample", "square")


def value(loss: Loss) -> float:
    return float(loss.total.detach())


def test_weights_count_the_trained_tokens_of_a_branch() -> None:
    branches_A = torch.tensor([0, 0, 0, 0, 1, 3, 3])
    assert token_weights(branches_A, 4, "token").tolist() == [1] * 7
    assert token_weights(branches_A, 4, "sample").tolist() == [0.25] * 4 + [1] + [0.5] * 2
    assert token_weights(branches_A, 4, "square").tolist() == pytest.approx([0.5] * 4 + [1] + [0.5**0.5] * 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_loss_is_the_weighted_cross_entropy(model: VLM, reduction: Reduction) -> None:
    packed = batch()
    loss = make_objective(NextToken(reduction=reduction))(model, packed)
    logits_AV = model.llm.logits(trained_states(model, packed))
    log_probs_A = logits_AV.detach().log_softmax(-1).gather(1, packed.targets_A[:, None])[:, 0]
    weights_A = token_weights(packed.branches_A, packed.num_branches, reduction)
    assert value(loss) == pytest.approx(-float((log_probs_A * weights_A).sum()), rel=1e-5)
    assert loss.weight == pytest.approx(float(weights_A.sum()))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_and_gradients_do_not_depend_on_the_division(model: VLM, reduction: Reduction) -> None:
    whole = next_token(model, batch(), reduction=reduction)
    parts = [next_token(model, batch(one), reduction=reduction) for one in examples()]
    assert sum(map(value, parts)) == pytest.approx(value(whole), rel=1e-5)
    assert sum(part.weight for part in parts) == pytest.approx(whole.weight)
    params = list(model.parameters())
    whole.total.backward()
    together = [p.grad for p in params]
    model.zero_grad()
    for part in parts:
        part.total.backward()
    for one, other in zip(together, [p.grad for p in params], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near(model: VLM) -> None:
    exact = value(next_token(model, batch()))
    with torch.autocast("cpu", torch.bfloat16):
        assert value(next_token(model, batch())) == pytest.approx(exact, rel=0.02)
    assert value(next_token(model.bfloat16(), batch())) == pytest.approx(exact, rel=0.02)


def pair(key: str, *references: float | None) -> Example:
    answers = zip((branch(11, 12, 2), branch(13, 2)), references, strict=True)
    return replace(
        examples()[0], key=key, branches=tuple(replace(one, reference=value) for one, value in answers)
    )


STORED = (pair("a", -9.0, -4.0), pair("b", -11.0, -7.5))


def test_an_example_that_is_no_pair_is_named(model: VLM) -> None:
    with pytest.raises(TrainingError, match="three has 3 answers"):
        MixedPreference(Preference())(model, batch(STORED[0], examples()[0]))
    empty = replace(STORED[0], key="empty", branches=(branch(11, 2), Branch((5, 2), (False, False))))
    with pytest.raises(TrainingError, match="empty: an answer without tokens"):
        MixedPreference(Preference())(model, batch(STORED[1], empty))


def test_a_record_without_a_stored_reference_is_named(model: VLM) -> None:
    with pytest.raises(TrainingError, match=r"late: no log-probabilities .*1 of 4"):
        MixedPreference(Preference(reference="stored"))(model, batch(STORED[0], pair("late", -9.0, None)))


def test_a_copy_must_be_made() -> None:
    with pytest.raises(TrainingError, match="no copy of the model"):
        make_objective(Preference(reference="copy"))


def test_adapters_off_is_refused_where_more_than_adapters_learns(model: VLM) -> None:
    model.requires_grad_(False)
    add_adapters(model, [(r"llm\.layers\..*", LoRA(rank=2))])
    model.projector.fc2.bias.requires_grad_()
    with pytest.raises(TrainingError, match=r"projector\.fc2\.bias is trained too"):
        MixedPreference(Preference(reference="adapters_off"))(model, batch(*STORED))


def test_the_mean_of_rewards_is_kept_over_a_restart(model: VLM) -> None:
    objective = MixedPreference(Preference())
    first = objective(model, batch(STORED[0]))
    resumed = MixedPreference(Preference())
    resumed.restore(objective.state())
    assert value(resumed(model, batch(STORED[1]))) == value(objective(model, batch(STORED[1])))
    assert objective.state() == resumed.state()
    assert objective.state()["reward_count"] == 4
    assert first.metrics["delta"] != 0


def test_measuring_does_not_move_the_mean(model: VLM) -> None:
    objective = MixedPreference(Preference())
    with torch.no_grad():
        loss = objective(model, batch(*STORED))
    assert not loss.total.requires_grad
    assert objective.state() == {"reward_sum": 0.0, "reward_count": 0.0}
    assert loss.metrics["delta"] == 0


@pytest.mark.parametrize("reference", ["stored", "adapters_off"])
def test_every_picture_is_encoded_once(model: VLM, reference: Literal["stored", "adapters_off"]) -> None:
    model.requires_grad_(False)
    add_adapters(model, [(r"llm\.layers\..*", LoRA(rank=2))])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    seen: list[int] = []
    model.vit.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    MixedPreference(Preference(reference=reference))(model, batch(*STORED)).total.backward()
    assert sum(seen) == 2


def test_preference_sums_do_not_depend_on_the_division(model: VLM) -> None:
    """But for the running mean, which moves from batch to batch, as it does in TRL."""
    spec = Preference(bco_weight=0)
    whole = MixedPreference(spec)(model, batch(*STORED))
    parts = [MixedPreference(spec)(model, batch(one)) for one in STORED]
    assert sum(map(value, parts)) == pytest.approx(value(whole), rel=1e-5)
    assert sum(part.weight for part in parts) == whole.weight == 2


def test_preference_under_autocast_is_near(model: VLM) -> None:
    exact = value(MixedPreference(Preference())(model, batch(*STORED)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = MixedPreference(Preference())(model, batch(*STORED))
        loss.total.backward()
    assert value(loss) == pytest.approx(exact, rel=0.02)
