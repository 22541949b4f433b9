"""What a run may learn: the objectives of a recipe as frozen values.

Knows no model and no tensors; `training.objectives` makes the losses of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from internvl.errors import RecipeError


def require(holds: bool, rule: str, *values: float) -> None:
    """Raises RecipeError with the rule and the values that break it."""
    if not holds:
        raise RecipeError(f"{rule}, got {', '.join(map(str, values))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """Cross entropy of answer tokens. `reduction` weighs a token by 1, 1/n or 1/sqrt(n), n = tokens of its
    answer sequence ("token", "sample", "square")."""

    reduction: Literal["token", "sample", "square"] = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Mixed preference optimisation (MPO, arXiv 2411.10442): DPO + BCO + next-token loss of the chosen
    answer.

    `reference` is the model with its adapters off, log-probabilities stored before the run, or a frozen copy.
    """

    beta: float = 0.1
    sigmoid_weight: float = 0.8
    bco_weight: float = 0.2
    chosen_weight: float = 1.0
    reference: Literal["adapters_off", "stored", "copy"] = "stored"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta is above 0", self.beta)
        weights = (self.sigmoid_weight, self.bco_weight, self.chosen_weight)
        rule = "the weights of preference losses are not negative, nor all 0"
        require(min(weights) >= 0 < max(weights), rule, *weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrastive:
    """Pictures against texts, over all pairs of a step (stage 1 of InternVL 1.0, arXiv 2312.14238).

    "softmax" is CLIP's loss, "sigmoid" SigLIP's with a fixed `bias`, for which checkpoints have no place.
    `soft_targets`: captions of one picture share the target. `mode`: which embedding of a picture.
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    soft_targets: bool = False
    mode: Literal["C", "G"] = "C"
    bias: float = -10.0

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing lies in [0, 1)", self.label_smoothing)
        if self.loss == "sigmoid":
            require(self.label_smoothing == 0, "label_smoothing is for softmax alone", self.label_smoothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage2:
    """Query tokens learn to compare, to match and to write: weights of the three losses (InternVL 1.0).

    `itc` compares them with texts as `Contrastive` does, with `backbone` the pooled tower too, as retrieval
    fine-tuning does. `itm` tells a picture's caption from another's: similar ones are drawn more often with
    `hard_negatives`; "half" has one text a picture, right and wrong in turn, "both" has two. `itg` writes.
    """

    itc: float = 1.0
    itm: float = 1.0
    itg: float = 1.0
    label_smoothing: float = 0.0
    soft_targets: bool = False
    backbone: bool = False
    hard_negatives: bool = True
    matches: Literal["half", "both"] = "both"

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing lies in [0, 1)", self.label_smoothing)
        weights = (self.itc, self.itm, self.itg)
        rule = "the weights of itc, itm and itg are not negative, nor all 0"
        require(min(weights) >= 0 < max(weights), rule, *weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCritical:
    """Answers that the model draws itself are made more likely the better they score (arXiv 1612.00563), by
    CIDEr-D against all answers on record, and each against the mean of its siblings.

    `samples` answers of at most `max_new_tokens` are drawn to each question, at `temperature`: below 1 they
    are nearer to the greedy answer, which is what then improves. A conversation of several rounds is as many
    questions, each after the rounds on record before it. Held-out records are measured by the next-token
    loss.
    """

    samples: int = 5
    max_new_tokens: int = 32
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.samples >= 2, "an answer has siblings: samples is 2 or more", self.samples)
        require(self.max_new_tokens >= 1, "max_new_tokens counts from 1", self.max_new_tokens)
        require(self.temperature > 0, "temperature is above 0", self.temperature)


ObjectiveSpec = NextToken | Preference | Contrastive | Stage2 | SelfCritical
