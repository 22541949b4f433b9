"""Learning from one's own answers: what is drawn, what it is compared with, what becomes likely."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from internvl.data.example import Branch, Example
from internvl.errors import TrainingError
from internvl.evaluation.scores import CiderD
from internvl.models.vlm import VLM
from internvl.training.objective_spec import SelfCritical
from internvl.training.objectives import next_token
from internvl.training.self_critical import SelfCriticalObjective, advantages, read_batch
from tests.training.tiny import CONTEXT, batch, examples, picture

WANTED = 5


class StartsRight(CiderD):
    """10 for an answer whose first id is `WANTED`."""

    def __init__(self) -> None:
        super().__init__([["a"]])

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        assert references
        return 10.0 if answer.split()[:1] == [str(WANTED)] else 0.0


def objective(samples: int = 8, temperature: float = 1.0) -> SelfCriticalObjective:
    return SelfCriticalObjective(
        SelfCritical(samples=samples, max_new_tokens=3, temperature=temperature),
        text=lambda ids: " ".join(map(str, ids)),
        stop_ids=(2,),
        measure=StartsRight(),
    )


def test_a_batch_is_read_back() -> None:
    *captions, first, second = read_batch(batch())
    for number, (one, example) in enumerate(zip(captions, examples()[:2], strict=True)):
        assert (one.key, one.ids, one.slots) == (example.key, example.prefix, example.slots)
        assert one.seen == tuple(range(4 * number, 4 * number + 4))
        assert list(one.references) == [branch.ids for branch in example.branches]
    assert (first.ids, first.references) == ((1, 8, 3), ((31, 2),))
    assert (second.ids, second.references) == ((1, 8, 3, 31, 2, 9), ((32, 33, 2),))


def test_every_round_is_a_question_with_the_pictures_before_it() -> None:
    """Questions of one picture, two of them the same; then a conversation that shows a second picture."""
    asked = Example(
        key="questions",
        prefix=(1, *(CONTEXT,) * 4),
        branches=(
            Branch((9, 21, 2), (False, True, True)),
            Branch((8, 3, 22, 2), (False, False, True, True)),
            Branch((9, 23, 2), (False, True, True)),
        ),
        slots=(1, 2, 3, 4),
        tiles_N3HW=picture(1),
    )
    shown = Example(
        key="rounds",
        prefix=(1, *(CONTEXT,) * 4),
        branches=(
            Branch((9, 24, 2, *(CONTEXT,) * 4, 8, 25, 2), (False, True, True, *(False,) * 5, True, True)),
        ),
        slots=(1, 2, 3, 4, 8, 9, 10, 11),
        tiles_N3HW=torch.cat((picture(2), picture(3))),
    )
    packed = batch(asked, shown)
    same, other, first, second = read_batch(packed)
    before = (1, *(CONTEXT,) * 4)
    assert (same.ids, same.references) == ((*before, 9), ((21, 2), (23, 2)))
    assert (other.ids, other.references) == ((*before, 8, 3), ((22, 2),))
    assert (first.ids, first.references, first.seen) == ((*before, 9), ((24, 2),), (4, 5, 6, 7))
    assert second.ids == (*before, 9, 24, 2, *(CONTEXT,) * 4, 8)
    assert (second.slots, second.seen) == ((1, 2, 3, 4, 8, 9, 10, 11), tuple(range(4, 12)))
    assert second.references == ((25, 2),)
    for one in (same, other, first, second):
        assert [one.ids[slot] for slot in one.slots] == [CONTEXT] * len(one.slots)


def test_a_picture_of_several_questions_learns_from_all(model: VLM) -> None:
    """The loss is that of the questions each in a record of its own, with the same answers drawn."""
    whole = Example(
        key="whole",
        prefix=(1, *(CONTEXT,) * 4),
        branches=(
            Branch((9, 21, 2), (False, True, True)),
            Branch((8, 3, 22, 2), (False, False, True, True)),
        ),
        slots=(1, 2, 3, 4),
        tiles_N3HW=picture(1),
    )
    apart = [
        Example(
            key="apart",
            prefix=(*whole.prefix, *branch.ids[:-2]),
            branches=(Branch(branch.ids[-2:], (True, True)),),
            slots=whole.slots,
            tiles_N3HW=whole.tiles_N3HW,
        )
        for branch in whole.branches
    ]
    losses, gradients = [], []
    for one in (batch(whole), batch(*apart)):
        torch.manual_seed(3)
        model.zero_grad()
        loss = objective(40)(model, one)
        loss.total.backward()
        losses.append((float(loss.total.detach()), loss.weight, loss.metrics))
        gradient = model.projector.fc1.weight.grad
        assert gradient is not None
        gradients.append(gradient.clone())
    assert losses[0][1:] == losses[1][1:]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_an_answer_is_compared_with_its_siblings() -> None:
    found_B = advantages(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), 3)
    assert found_B.tolist() == pytest.approx([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0])


def test_what_scores_becomes_likely(model: VLM) -> None:
    """From one answer in fifty to most of them."""
    learns, one = objective(), batch(examples()[0])
    optimizer = torch.optim.Adam(model.llm.parameters(), lr=3e-3)
    torch.manual_seed(0)
    rewards = []
    for _ in range(120):
        loss = learns(model, one)
        rewards.append(loss.metrics["reward"] / loss.weight)
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()
    assert sum(rewards[:10]) / 10 < 2.0
    assert sum(rewards[-10:]) / 10 > 8.0


def test_gradients_reach_the_projector(model: VLM) -> None:
    torch.manual_seed(1)
    for _ in range(20):
        loss = objective(30)(model, batch())
        loss.total.backward()
        gradient = model.projector.fc1.weight.grad
        assert gradient is not None
        if float(gradient.abs().sum()) > 0:
            return
    raise AssertionError("no answer of six hundred began with the wanted id")


def test_half_the_temperature_is_twice_the_logits(model: VLM) -> None:
    """What is drawn, its loss and its gradients."""
    losses, gradients = [], []
    for temperature, scale in ((0.5, 1.0), (1.0, 2.0)):
        with torch.no_grad():
            model.llm.head.weight *= scale
        torch.manual_seed(3)
        model.zero_grad()
        loss = objective(40, temperature)(model, batch())
        loss.total.backward()
        losses.append((float(loss.total.detach()), loss.weight, loss.metrics))
        gradient = model.llm.layers[0].attn.out.weight.grad
        assert gradient is not None
        gradients.append(gradient.clone())
    assert losses[0] == losses[1]
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_held_out_records_have_the_next_token_loss(model: VLM) -> None:
    with torch.no_grad():
        found, expected = objective()(model, batch()), next_token(model, batch())
    assert (float(found.total), found.weight) == (float(expected.total), expected.weight)


def test_an_answer_without_siblings_is_refused() -> None:
    with pytest.raises(TrainingError, match="2 or more, got 1"):
        SelfCritical(samples=1)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(TrainingError, match="above 0, got 0"):
        SelfCritical(temperature=0.0)
