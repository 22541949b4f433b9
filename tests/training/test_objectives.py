"""Losses that can be summed: weights, and sums over any division of the examples."""

from __future__ import annotations

import pytest
import torch

from internvl.models.vlm import VLM
from internvl.training.forward import trained_states
from internvl.training.objectives import Loss, Reduction, make_objective, next_token, token_weights
from internvl.training.recipe import NextToken
from tests.training.tiny import batch, examples

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
