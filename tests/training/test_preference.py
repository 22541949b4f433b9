"""The arithmetic of pairs, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from internvl.training.objective_spec import Preference
from internvl.training.preference import RunningMean, mixed, pair_losses, rewards

LN2 = math.log(2)


def test_a_model_equal_to_its_reference_has_no_reward() -> None:
    policy_B = torch.tensor([-3.0, -8.0])
    losses = pair_losses(policy_B, policy_B, torch.tensor([2, 4]), beta=0.1, delta=0.0)
    assert losses.sigmoid_U.tolist() == pytest.approx([LN2])
    assert losses.bco_U.tolist() == pytest.approx([2 * LN2])
    assert losses.chosen_U.tolist() == [1.5]
    value = mixed(losses, Preference(sigmoid_weight=0.5, bco_weight=0.25, chosen_weight=2.0))
    assert float(value) == pytest.approx(0.5 * LN2 + 0.25 * 2 * LN2 + 3)


def test_pairs_are_neighbours_and_sums_grow_with_them() -> None:
    policy_B, reference_B = torch.tensor([-1.0, -5.0, -2.0, -1.0]), torch.tensor([-2.0, -4.0, -2.0, -3.0])
    assert rewards(policy_B, reference_B, 0.5).tolist() == [0.5, -0.5, 0, 1]
    losses = pair_losses(policy_B, reference_B, torch.ones(4), beta=0.5, delta=0.25)
    assert losses.chosen_reward_U.tolist() == [0.5, 0]
    assert losses.rejected_reward_U.tolist() == [-0.5, 1]
    assert losses.sigmoid_U.tolist() == pytest.approx([math.log(1 + math.exp(-gap)) for gap in (1, -1)])
    expected = [
        math.log(1 + math.exp(-(chosen - 0.25))) + math.log(1 + math.exp(rejected - 0.25))
        for chosen, rejected in ((0.5, -0.5), (0, 1))
    ]
    assert losses.bco_U.tolist() == pytest.approx(expected)


def test_the_running_mean_counts_every_reward_of_every_process_once() -> None:
    others = iter([torch.tensor([3.0, 2.0]), torch.tensor([0.0, 2.0])])
    mean = RunningMean(lambda sums: sums + next(others))
    assert mean.value == 0
    mean.add(torch.tensor([1.0, 2.0]))
    assert mean.value == pytest.approx(6 / 4)
    mean.add(torch.tensor([4.0, 0.0]))
    assert mean.value == pytest.approx(10 / 8)


def test_a_reward_that_is_not_finite_does_not_stay() -> None:
    mean = RunningMean(lambda sums: sums)
    mean.add(torch.tensor([1.0, 3.0]))
    mean.add(torch.tensor([math.nan, 3.0]))
    mean.add(torch.tensor([math.inf, 3.0]))
    assert (mean.value, mean.count) == (2, 2)
