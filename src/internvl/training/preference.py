"""Mixed preference optimisation (MPO, arXiv 2411.10442): the arithmetic over pairs of answers.

Three losses of one pair: the chosen answer should beat the rejected one (DPO, arXiv 2305.18290), each answer
should lie on its side of the running mean of all rewards (BCO, arXiv 2404.04656), and the chosen one should
be likely (mean over its tokens). A reward is beta times how much more likely an answer became than under
the reference model. Knows no model and no tokens. Shape letters: B answers (chosen, rejected, chosen, ...),
U pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from internvl.training.objective_spec import Preference


class PairLosses(NamedTuple):
    """The parts of the loss and the rewards, each (U,); no part is weighted yet."""

    sigmoid_U: Tensor
    bco_U: Tensor
    chosen_U: Tensor
    chosen_reward_U: Tensor
    rejected_reward_U: Tensor


def rewards(policy_B: Tensor, reference_B: Tensor, beta: float) -> Tensor:
    """Of every answer, (B,), from its summed log-probabilities under both models."""
    return beta * (policy_B - reference_B)


def pair_losses(
    policy_B: Tensor, reference_B: Tensor, counts_B: Tensor, beta: float, delta: float
) -> PairLosses:
    """`counts_B`: tokens of each answer; `delta`: the mean reward that BCO compares with."""
    chosen_U, rejected_U = rewards(policy_B, reference_B, beta).view(-1, 2).unbind(1)
    return PairLosses(
        sigmoid_U=-logsigmoid(chosen_U - rejected_U),
        bco_U=-logsigmoid(chosen_U - delta) - logsigmoid(delta - rejected_U),
        chosen_U=-(policy_B / counts_B).view(-1, 2)[:, 0],
        chosen_reward_U=chosen_U.detach(),
        rejected_reward_U=rejected_U.detach(),
    )


def mixed(losses: PairLosses, spec: Preference) -> Tensor:
    """The sum over pairs of the weighted parts."""
    total_U = spec.sigmoid_weight * losses.sigmoid_U + spec.bco_weight * losses.bco_U
    return (total_U + spec.chosen_weight * losses.chosen_U).sum()


class RunningMean:
    """The mean of all rewards so far, over all processes: BCO's delta.

    The rewards of a batch count before it is used, as in TRL; each reward counts the same. `total` sums over
    processes.
    """

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total, self.sum, self.count = total, 0.0, 0.0

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else 0.0

    def add(self, values: Tensor) -> None:
        """Values that are not finite stop or skip the step elsewhere; they must not stay in the mean."""
        sums = torch.tensor([float(values.sum()), len(values)], dtype=torch.float64)
        added, count = self.total(sums).tolist()
        if math.isfinite(added):
            self.sum, self.count = self.sum + added, self.count + count
