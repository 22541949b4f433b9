"""Learning from one's own answers: what is drawn, what it is compared with, what becomes likely."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from internvl.errors import TrainingError
from internvl.evaluation.scores import CiderD
from internvl.models.vlm import VLM
from internvl.training.objective_spec import SelfCritical
from internvl.training.objectives import next_token
from internvl.training.self_critical import SelfCriticalObjective, advantages, read_batch
from tests.training.tiny import batch, examples

WANTED = 5


class StartsRight(CiderD):
    """10 for an answer whose first id is `WANTED`."""

    def __init__(self) -> None:
        super().__init__([["a"]])

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        assert references
        return 10.0 if answer.split()[:1] == [str(WANTED)] else 0.0


def objective(samples: int = 8) -> SelfCriticalObjective:
    return SelfCriticalObjective(
        SelfCritical(samples=samples, max_new_tokens=3),
        text=lambda ids: " ".join(map(str, ids)),
        stop_ids=(2,),
        measure=StartsRight(),
    )


def test_a_batch_is_read_back() -> None:
    for one, example in zip(read_batch(batch()), examples(), strict=True):
        assert (one.ids, one.slots) == (example.prefix, example.slots)
        trained = [
            tuple(id for id, counts in zip(branch.ids, branch.trained, strict=True) if counts)
            for branch in example.branches
        ]
        assert list(one.references) == trained


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


def test_held_out_records_have_the_next_token_loss(model: VLM) -> None:
    with torch.no_grad():
        found, expected = objective()(model, batch()), next_token(model, batch())
    assert (float(found.total), found.weight) == (float(expected.total), expected.weight)


def test_an_answer_without_siblings_is_refused() -> None:
    with pytest.raises(TrainingError, match="2 or more, got 1"):
        SelfCritical(samples=1)
