"""Probes of frozen features, against computations by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from internvl.errors import InputError
from internvl.evaluation.probe import accuracy, nearest_neighbours, ridge


def directions(*degrees: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees])


def test_one_neighbour_is_the_nearest_by_angle_whatever_the_length() -> None:
    train = directions(0, 90) * torch.tensor([[100.0], [0.01]])
    assert nearest_neighbours(train, torch.tensor([7, 3]), directions(30, 60), 1).tolist() == [7, 3]


def test_a_near_vote_outweighs_two_far_ones() -> None:
    train, labels = directions(0, 40, 42), torch.tensor([0, 1, 1])
    asked = directions(10)
    # exp((cos 10 - cos 30) / 0.07) = 5.5 > 1 + exp((cos 32 - cos 30) / 0.07) = 1.8
    assert nearest_neighbours(train, labels, asked, 3).tolist() == [0]
    # At a high temperature all votes are equal.
    assert nearest_neighbours(train, labels, asked, 3, temperature=100.0).tolist() == [1]
    assert nearest_neighbours(train, labels, asked, 2, temperature=100.0).tolist() == [0]


def test_votes_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    train, asked = (torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in (40, 30))
    labels = torch.randint(0, 4, (40,), generator=generator)
    expected = []
    for one in asked:
        votes = dict.fromkeys(range(4), 0.0)
        cosines = [float(one @ other / (one.norm() * other.norm())) for other in train]
        for index in sorted(range(40), key=lambda index: -cosines[index])[:7]:
            votes[int(labels[index])] += math.exp(cosines[index] / 0.07)
        expected.append(max(votes, key=votes.__getitem__))
    assert nearest_neighbours(train, labels, asked, 7).tolist() == expected


def solve(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Ridge with a free intercept by the normal equations: weights below, intercept last."""
    with_one = torch.cat((features, torch.ones(len(features), 1, dtype=features.dtype)), 1)
    weight = torch.full((with_one.shape[1],), penalty, dtype=features.dtype)
    weight[-1] = 0
    solution: Tensor = torch.linalg.solve(with_one.T @ with_one + weight.diag(), with_one.T @ targets)
    return solution


@pytest.mark.parametrize("width", [3, 30])
def test_ridge_by_the_normal_equations(width: int) -> None:
    """More examples than features, and fewer; the penalty left-out examples choose."""
    generator = torch.Generator().manual_seed(width)
    labels = torch.randint(0, 3, (24,), generator=generator)
    centres = torch.randn(3, width, generator=generator, dtype=torch.float64)
    train = centres[labels] + torch.randn(24, width, generator=generator, dtype=torch.float64)
    asked = torch.randn(50, width, generator=generator, dtype=torch.float64) * 2 + 5
    mean, std = train.mean(0), train.std(0, correction=0)
    scaled, targets = (train - mean) / std, (labels[:, None] == torch.arange(3)).double()

    def error(penalty: float) -> float:
        total = 0.0
        for index in range(24):
            kept = torch.arange(24) != index
            solution = solve(scaled[kept], targets[kept], penalty * 24)
            guess = scaled[index] @ solution[:-1] + solution[-1]
            total += float((guess - targets[index]).square().sum())
        return total

    penalties = (1e-3, 1.0, 1e3)
    best = min(penalties, key=error)
    for offered, penalty in ((penalties, best), *(((one,), one) for one in penalties)):
        solution = solve(scaled, targets, penalty * 24)
        expected = ((asked - mean) / std @ solution[:-1] + solution[-1]).argmax(1)
        assert torch.equal(ridge(train, labels, asked, offered), expected)


def test_what_is_separable_is_told_apart_and_labels_are_kept() -> None:
    train = torch.tensor([[0.0, 5.0], [1.0, 5.0], [10.0, 5.0], [11.0, 5.0]])
    labels = torch.tensor([40, 40, 2, 2])
    assert ridge(train, labels, torch.tensor([[2.0, 5.0], [9.0, 5.0]])).tolist() == [40, 2]


def test_accuracy_is_the_share() -> None:
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == 0.5
    for labels in (torch.tensor([1]), torch.tensor([])):
        with pytest.raises(InputError, match="one for each"):
            accuracy(torch.tensor([]), labels)


def test_what_does_not_fit_is_refused() -> None:
    train, labels = torch.eye(3), torch.arange(3)
    for broken in (
        (torch.eye(3), torch.arange(2), train),
        (torch.eye(3), labels, torch.eye(2)),
        (torch.eye(0), torch.arange(0), torch.eye(0)),
        (train, labels[:, None], train),
    ):
        with pytest.raises(InputError):
            ridge(*broken)
    for k in (0, 4):
        with pytest.raises(InputError, match="1 to 3"):
            nearest_neighbours(train, labels, train, k)
    for penalties in ((), (0.0,)):
        with pytest.raises(InputError, match="positive"):
            ridge(train, labels, train, penalties)
    with pytest.raises(InputError, match="NaN"):
        ridge(train, labels, train * torch.nan)
