"""Captions packed behind a shared picture are exactly the sequences they would be alone."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from internvl.training.objectives import caption_tokens
from tests.training.tiny import CONTEXT, GROUPS, batch


def separate_losses(model: VLM) -> torch.Tensor:
    """Sum over captions of each one's loss in a sequence of its own."""
    total = torch.zeros(())
    for group, features_PC in zip(GROUPS, batch().features_NPC, strict=True):
        for branch in group.branches:
            ids_T = torch.tensor([*group.prefix, *branch])
            slots_S = (ids_T == CONTEXT).nonzero()[:, 0]
            x_TD = model.embed(ids_T, slots_S, model.projector(features_PC[None])[0])
            hidden_TD = model.llm(x_TD, torch.arange(len(ids_T)), Packed([len(ids_T)]))
            logits_AV = model.llm.logits(hidden_TD[len(group.prefix) - 1 : -1])
            total = total + cross_entropy(logits_AV, torch.tensor(branch), reduction="sum")
    return total


def test_loss_and_gradients_equal_separate_sequences(model: VLM) -> None:
    packed = caption_tokens(model, batch())
    alone = separate_losses(model)
    torch.testing.assert_close(packed.total, alone, rtol=1e-5, atol=1e-4)
    params = list(model.projector.parameters())
    ours = torch.autograd.grad(packed.total, params)
    theirs = torch.autograd.grad(alone, params)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_counts_are_sums(model: VLM) -> None:
    loss = caption_tokens(model, batch())
    assert loss.count == sum(len(branch) for group in GROUPS for branch in group.branches)
    assert loss.metrics == {"captions": 5}


def test_bfloat16_is_near(model: VLM) -> None:
    exact = float(caption_tokens(model, batch()).total.detach())
    model.llm.bfloat16()
    assert abs(float(caption_tokens(model, batch()).total.detach()) - exact) < 0.02 * exact
