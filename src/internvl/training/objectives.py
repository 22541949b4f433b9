"""Objectives: functions from a model and a batch to a loss that can be summed.

An objective returns sums, never means, so that accumulation over micro-batches and processes is exact: the
loop divides the gradients of a step by its whole weight. It knows no optimiser, no schedule, no files.
Shape letters: A trained tokens, B branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from internvl.data.batch import Batch
from internvl.errors import TrainingError
from internvl.models.vlm import VLM
from internvl.training.cross_entropy import cross_entropy
from internvl.training.forward import trained_states
from internvl.training.recipe import NextToken, ObjectiveSpec

Reduction = Literal["token", "sample", "square"]

POWERS: Mapping[Reduction, float] = {"token": 0.0, "sample": -1.0, "square": -0.5}
"""The weight of a token is this power of the number of trained tokens of its branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The mean loss of a step is the sum of `total` over the sum of `weight`, over micro-batches and
    processes; `metrics` are sums too."""

    total: Tensor
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Objective = Callable[[Any, Any], Loss]
"""`objective(model, batch) -> Loss`. One that keeps something between steps has `state()` and `restore()`."""


def identity(x: Tensor) -> Tensor:
    return x


def make_objective(spec: ObjectiveSpec, *, total: Callable[[Tensor], Tensor] = identity) -> Objective:
    """The objective of a recipe. `total` sums a tensor over processes."""
    if isinstance(spec, NextToken):
        return partial(next_token, reduction=spec.reduction)
    raise TrainingError(f"no objective for {spec}")


def next_token(model: VLM, batch: Batch, *, reduction: Reduction = "token") -> Loss:
    """Cross entropy of the trained tokens, each weighed by its branch (`token_weights`).

    Metrics: `trained`, their number, and `token_loss`, the sum of their losses without weights.
    """
    weights_A = token_weights(batch.branches_A, batch.num_branches, reduction)
    hidden_AD = trained_states(model, batch)
    loss = cross_entropy(hidden_AD, model.llm.head, batch.targets_A, weights_A)
    metrics = {"trained": float(len(weights_A)), "token_loss": float(loss.tokens_A.sum())}
    return Loss(total=loss.total, weight=float(weights_A.sum()), metrics=metrics)


def token_weights(branches_A: Tensor, num_branches: int, reduction: Reduction) -> Tensor:
    """1, 1/n or 1/sqrt(n) for each trained token, n = trained tokens of its branch (InternVL 2.5, 3.3)."""
    counts_B = torch.bincount(branches_A, minlength=num_branches)
    return counts_B[branches_A].float() ** POWERS[reduction]
