"""States of packed examples against those of each sequence alone; pictures, cached features and none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from internvl.data.example import Example
from internvl.errors import PromptError
from internvl.models.attention import Packed
from internvl.models.vlm import VLM
from internvl.training import forward
from internvl.training.forward import attention, trained_states, vision_tokens
from tests.training.tiny import batch, branch, examples


def alone(model: VLM, example: Example) -> Tensor:
    """States of the trained tokens of an example, each branch in a sequence of its own."""
    states = []
    for one in example.branches:
        ids_T = torch.tensor([*example.prefix, *one.ids])
        vision_SD = torch.empty(0, 32)
        if example.tiles_N3HW is not None:
            vision_SD = model.encode_tiles(example.tiles_N3HW).flatten(0, 1)
        x_TD = model.embed(ids_T, torch.tensor(example.slots, dtype=torch.long), vision_SD)
        hidden_TD = model.llm(x_TD, torch.arange(len(ids_T)), Packed([len(ids_T)]))
        trained_T = torch.tensor([False] * len(example.prefix) + list(one.trained))
        states.append(hidden_TD[:-1][trained_T[1:]])
    return torch.cat(states)


def test_packed_examples_are_what_they_are_alone(model: VLM) -> None:
    expected_AD = torch.cat([alone(model, example) for example in examples()])
    torch.testing.assert_close(trained_states(model, batch()), expected_AD, rtol=1e-5, atol=1e-5)


def test_a_picture_after_the_first_answer(model: VLM) -> None:
    three = examples()[0]
    one = branch(11, 12, 2)
    late = replace(
        three, prefix=(1, 5), branches=(replace(one, ids=(11, 2, 7, 7, 7, 7, 12), trained=(True,) * 7),)
    )
    late = replace(late, slots=(4, 5, 6, 7))
    torch.testing.assert_close(trained_states(model, batch(late)), alone(model, late), rtol=1e-5, atol=1e-5)


def test_accelerators_run_plain_sequences_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for an accelerator; nothing is run on it."""
    three, two, text = examples()
    made: list[list[int]] = []
    monkeypatch.setattr(forward, "Packed", lambda lengths, device: made.append(lengths))
    monkeypatch.setattr(forward, "SharedPrefix", lambda groups, device: made.append([]))
    meta = torch.device("meta")
    single = replace(three, branches=three.branches[:1])
    for chosen in (batch(single, text).to(meta), batch(text, two).to(meta), batch(text, text)):
        attention(chosen)
    assert made == [[9, 8], [], []]


def test_cached_features_are_the_towers(model: VLM) -> None:
    fresh = batch()
    features_NPC = model.vit(fresh.tiles_N3HW, model.config.select_layer)[:, 1:].detach()
    cached = replace(fresh, features_NPC=features_NPC)
    torch.testing.assert_close(trained_states(model, cached), trained_states(model, fresh))
    gradients = torch.autograd.grad(
        trained_states(model, cached).sum(), list(model.vit.parameters()), allow_unused=True
    )
    assert gradients == (None,) * len(gradients)  # the tower was not run


@pytest.mark.parametrize("cached", [False, True])
def test_no_picture_gives_zero_gradients_to_all_that_sees_pictures(model: VLM, cached: bool) -> None:
    text = batch(examples()[2])
    if cached:
        text = replace(text, features_NPC=torch.empty(0, 16, 24))
    assert vision_tokens(model, text).shape == (0, 32)
    params = [*model.projector.parameters(), *([] if cached else model.vit.parameters())]
    for gradient in torch.autograd.grad(trained_states(model, text).sum(), params):
        assert not gradient.any()


def test_a_frozen_language_model_without_pictures_still_has_a_backward_pass(model: VLM) -> None:
    model.llm.requires_grad_(False)
    trained_states(model, batch(examples()[2])).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.projector.parameters())


def test_tiles_that_do_not_fill_the_slots_are_refused(model: VLM) -> None:
    short = replace(examples()[0], slots=(1, 2, 3))
    with pytest.raises(PromptError, match="3 slots"):
        trained_states(model, batch(short))


def test_bfloat16_autocast_is_near(model: VLM) -> None:
    exact_AD = trained_states(model, batch())
    with torch.autocast("cpu", torch.bfloat16):
        near_AD = trained_states(model, batch())
    assert not torch.equal(near_AD.float(), exact_AD)
    torch.testing.assert_close(near_AD.float(), exact_AD, rtol=0.1, atol=0.1)


def test_gradients_meet_in_a_fixed_order(model: VLM) -> None:
    """Branches start from one token. Plain indexing has a backward pass that adds in the order in which
    threads come by; the race itself is too rare on a busy machine to be waited for."""
    node = trained_states(model, batch()).grad_fn
    assert node is not None
    assert node.name() == "IndexSelectBackward0"
