"""The objective of preference pairs against MPO written out plainly: separate sequences, whole logits.

The reference follows the definition of the paper (arXiv 2411.10442) and TRL's running mean of rewards.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internvl.adapt.lora import LoRA, add_adapters
from internvl.data.example import Branch, Example
from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from internvl.training.objective_spec import Preference
from internvl.training.objectives import MixedPreference, make_objective
from internvl.training.reference import Reference, quiet_log_probs
from tests.training.tiny import batch, chat_model, preference_pairs

SPEC = Preference(beta=0.3, sigmoid_weight=0.8, bco_weight=0.2, chosen_weight=0.7, reference="stored")


def plain_log_prob(model: VLM, example: Example, one: Branch) -> Tensor:
    """Summed log-probability of an answer, from all logits of its own sequence."""
    ids_T = torch.tensor([*example.prefix, *one.ids])
    vision_SD = torch.empty(0, 32)
    if example.tiles_N3HW is not None:
        vision_SD = model.encode_tiles(example.tiles_N3HW).flatten(0, 1)
    x_TD = model.embed(ids_T, torch.tensor(example.slots, dtype=torch.long), vision_SD)
    logits_TV = model.llm.logits(model.llm(x_TD, torch.arange(len(ids_T)), Packed([len(ids_T)])))
    log_probs_T = logits_TV[:-1].log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
    mask_T = torch.tensor([False] * len(example.prefix) + list(one.trained))[1:]
    return log_probs_T[mask_T].sum()


class PlainMPO:
    """MPO, batch after batch, as a mean over pairs."""

    def __init__(self, spec: Preference) -> None:
        self.spec, self.seen = spec, list[float]()

    def __call__(self, model: VLM, reference: VLM, examples: tuple[Example, ...]) -> Tensor:
        losses, chosen_rewards, rejected_rewards = [], [], []
        for example in examples:
            chosen, rejected = (plain_log_prob(model, example, one) for one in example.branches)
            with torch.no_grad():
                ref_chosen, ref_rejected = (
                    plain_log_prob(reference, example, one) for one in example.branches
                )
            chosen_rewards.append(self.spec.beta * (chosen - ref_chosen))
            rejected_rewards.append(self.spec.beta * (rejected - ref_rejected))
            margin = self.spec.beta * ((chosen - rejected) - (ref_chosen - ref_rejected))
            losses.append(
                self.spec.sigmoid_weight * -F.logsigmoid(margin)
                + self.spec.chosen_weight * -chosen / sum(example.branches[0].trained)
            )
        self.seen += [float(reward.detach()) for reward in (*chosen_rewards, *rejected_rewards)]
        delta = sum(self.seen) / len(self.seen)
        for index, (chosen, rejected) in enumerate(zip(chosen_rewards, rejected_rewards, strict=True)):
            bco = -torch.log(torch.sigmoid(chosen - delta)) - torch.log(torch.sigmoid(-(rejected - delta)))
            losses[index] = losses[index] + self.spec.bco_weight * bco
        return torch.stack(losses).mean()


def moved(start: VLM) -> VLM:
    """The model some way off its start, so that rewards are not zero."""
    model = deepcopy(start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def check_gradients(model: VLM, ours: Tensor, theirs: Tensor) -> None:
    params = [p for p in model.parameters() if p.requires_grad]
    for one, other in zip(
        torch.autograd.grad(ours, params), torch.autograd.grad(theirs, params), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_loss_and_gradients_over_three_batches_with_a_copy() -> None:
    start = chat_model()
    model = moved(start)
    objective = make_objective(replace(SPEC, reference="copy"), reference=Reference(start))
    plain, all_pairs = PlainMPO(SPEC), preference_pairs()
    for chosen in (all_pairs, all_pairs[:1], all_pairs[1:]):
        loss = objective(model, batch(*chosen))
        expected = plain(model, start, chosen)
        assert loss.weight == len(chosen)
        torch.testing.assert_close(loss.total / loss.weight, expected, rtol=1e-5, atol=1e-5)
        check_gradients(model, loss.total / loss.weight, expected)


def test_stored_log_probabilities_are_the_same_reference() -> None:
    start = chat_model()
    model = moved(start)
    stored_B = quiet_log_probs(start, batch(*preference_pairs()))
    loss = MixedPreference(SPEC)(model, replace(batch(*preference_pairs()), reference_B=stored_B))
    expected = PlainMPO(SPEC)(model, start, preference_pairs())
    torch.testing.assert_close(loss.total / 4, expected, rtol=1e-5, atol=1e-5)
    assert loss.metrics["reward_accuracy"] in range(5)
    assert loss.metrics["chosen_reward"] + loss.metrics["rejected_reward"] == pytest.approx(
        2 * loss.metrics["delta"], rel=1e-4
    )


@pytest.mark.parametrize("pattern", [r"llm\..*", r"llm\.layers\..*|vit\..*"])
def test_switching_adapters_off_is_the_same_reference(pattern: str) -> None:
    start = chat_model().eval()
    model = deepcopy(start).requires_grad_(False).train()
    add_adapters(model, [(pattern, LoRA(rank=2))])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad_("lora_" in name).requires_grad:
            nn.init.normal_(parameter, std=0.3)
    loss = MixedPreference(replace(SPEC, reference="adapters_off"))(model, batch(*preference_pairs()))
    expected = PlainMPO(SPEC)(model, start, preference_pairs())
    torch.testing.assert_close(loss.total / 4, expected, rtol=1e-5, atol=1e-5)
    check_gradients(model, loss.total / 4, expected)
