"""Objectives: functions from a model and a batch to a loss that can be summed.

An objective returns sums, never means, so that accumulation over micro-batches and processes is exact: the
loop divides the gradients of a step by its whole weight. It knows no optimiser, no schedule, no files.
Shape letters: A trained tokens, B branches, U pairs, S slots, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from internvl.data.batch import Batch
from internvl.errors import TrainingError
from internvl.models.vlm import VLM
from internvl.training.contrastive import ContrastiveObjective
from internvl.training.cross_entropy import cross_entropy
from internvl.training.forward import trained_states, vision_tokens
from internvl.training.loss import Loss, Objective
from internvl.training.objective_spec import Contrastive, NextToken, ObjectiveSpec, Preference, Stage2
from internvl.training.preference import PairLosses, RunningMean, mixed, pair_losses, rewards
from internvl.training.reference import log_probs, stored, without_adapters
from internvl.training.stage2 import Stage2Objective
from internvl.training.world import World

Reduction = Literal["token", "sample", "square"]

POWERS: Mapping[Reduction, float] = {"token": 0.0, "sample": -1.0, "square": -0.5}
"""The weight of a token is this power of the number of trained tokens of its branch."""


def identity(x: Tensor) -> Tensor:
    return x


def make_objective(
    spec: ObjectiveSpec,
    *,
    world: World | None = None,
    reference: Callable[[Batch], Tensor] | None = None,
) -> Objective:
    """The objective of a recipe, on one of the processes of `world` (default: alone).

    `reference` gives the summed log-probabilities of a batch's answers under the frozen copy (`Reference`)
    that a recipe may ask for. Raises TrainingError where it is asked for and not given.
    """
    if isinstance(spec, NextToken):
        return partial(next_token, reduction=spec.reduction)
    world = world or World()
    if isinstance(spec, Contrastive):
        return ContrastiveObjective(spec, world)
    if isinstance(spec, Stage2):
        return Stage2Objective(spec, world)
    if isinstance(spec, Preference):
        return MixedPreference(spec, world.sum, reference)
    raise TrainingError(f"{type(spec).__name__} is made from its records (`training.self_critical`)")


def next_token(model: VLM, batch: Batch, *, reduction: Reduction = "token") -> Loss:
    """Cross entropy of the trained tokens, each weighed by its branch (`token_weights`)."""
    weights_A = token_weights(batch.branches_A, batch.num_branches, reduction)
    hidden_AD = trained_states(model, batch)
    total = cross_entropy(hidden_AD, model.llm.head, batch.targets_A, weights_A).total
    return Loss(total=total, weight=float(weights_A.sum()))


def token_weights(branches_A: Tensor, num_branches: int, reduction: Reduction) -> Tensor:
    """1, 1/n or 1/sqrt(n) for each trained token, n = trained tokens of its branch (InternVL 2.5, 3.3)."""
    counts_B = torch.bincount(branches_A, minlength=num_branches)
    return counts_B[branches_A].float() ** POWERS[reduction]


class MixedPreference:
    """MPO over pairs (chosen, rejected) that share a prefix, so each picture is encoded once.

    The weight of a loss is its number of pairs; metrics are sums over pairs. Keeps the mean of all rewards.
    """

    def __init__(
        self,
        spec: Preference,
        total: Callable[[Tensor], Tensor] = identity,
        reference: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        if spec.reference == "copy" and reference is None:
            raise TrainingError("objective.reference is copy, but no copy of the model was made at the start")
        self.spec, self.mean = spec, RunningMean(total)
        self.reference = reference if spec.reference == "copy" else None

    def state(self) -> dict[str, float]:
        return {"reward_sum": self.mean.sum, "reward_count": self.mean.count}

    def restore(self, state: Mapping[str, float]) -> None:
        self.mean.sum, self.mean.count = state["reward_sum"], state["reward_count"]

    def __call__(self, model: VLM, batch: Batch) -> Loss:
        """Raises TrainingError for an example that is no pair, and for a reference that is not there."""
        counts_B = _pair_counts(batch)
        vision_SD = vision_tokens(model, batch)
        reference_B = self._reference(model, batch, vision_SD)
        hidden_AD = trained_states(model, batch, vision_SD)
        policy_B = log_probs(model, hidden_AD, batch).requires_grad_()
        if torch.is_grad_enabled():  # held-out pairs are measured against the mean, not part of it
            self.mean.add(rewards(policy_B.detach(), reference_B, self.spec.beta))
        with torch.enable_grad():
            losses = pair_losses(policy_B, reference_B, counts_B, self.spec.beta, self.mean.value)
            value = mixed(losses, self.spec)
            (slopes_B,) = torch.autograd.grad(value, [policy_B])
        # The loss as a function of the tokens' losses, to first order: its gradient is that of the loss.
        weights_A = -slopes_B[batch.branches_A]
        tangent = cross_entropy(hidden_AD, model.llm.head, batch.targets_A, weights_A).total
        total = value.detach() + tangent - tangent.detach()
        return Loss(total=total, weight=float(len(losses.bco_U)), metrics=self._metrics(losses))

    def _reference(self, model: VLM, batch: Batch, vision_SD: Tensor) -> Tensor:
        if self.reference is not None:
            return self.reference(batch)
        if self.spec.reference == "adapters_off":
            return without_adapters(model, batch, vision_SD)
        return stored(batch)

    def _metrics(self, losses: PairLosses) -> dict[str, float]:
        chosen_U, rejected_U = losses.chosen_reward_U, losses.rejected_reward_U
        sums = {
            "sigmoid": losses.sigmoid_U,
            "bco": losses.bco_U,
            "chosen_loss": losses.chosen_U,
            "chosen_reward": chosen_U,
            "rejected_reward": rejected_U,
            "reward_accuracy": (chosen_U > rejected_U).float(),
            "delta": torch.full_like(chosen_U, self.mean.value),
        }
        return {name: float(values.detach().sum()) for name, values in sums.items()}


def _pair_counts(batch: Batch) -> Tensor:
    """Trained tokens of every answer (B,); raises TrainingError for an example that is no pair."""
    for key, (_, branches) in zip(batch.keys, batch.groups, strict=True):
        if len(branches) != 2:
            raise TrainingError(
                f"{key} has {len(branches)} answers: a preference is a chosen and a rejected one, no more"
            )
    counts_B = torch.bincount(batch.branches_A, minlength=batch.num_branches)
    if (counts_B == 0).any():
        raise TrainingError(
            f"{batch.keys[int((counts_B == 0).int().argmax()) // 2]}: an answer without tokens"
        )
    return counts_B
