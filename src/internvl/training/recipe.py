"""What a training run is: a frozen value, written down in a file of `recipes/`.

Knows no model, no tensors and no files; `training.loop` carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from internvl.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Settings of the parameters that a pattern names."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


Rule = tuple[str, AdamW | None]
"""A regular expression over canonical parameter names, and how to train what it names; None freezes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run of `steps` optimiser steps. The first rule that matches a parameter's whole name decides."""

    name: str
    params: tuple[Rule, ...]
    steps: int
    batch_size: int
    warmup: int = 0
    final_lr: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    clip_norm: float | None = 1.0
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    save_every: int = 200

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not 0 <= self.warmup <= self.steps:
            raise TrainingError(
                f"recipe {self.name}: steps ({self.steps}) and batch size ({self.batch_size}) must be "
                f"positive and warm-up ({self.warmup}) no longer than the run"
            )
        if min(self.log_every, self.eval_every, self.save_every) < 1:
            raise TrainingError(f"recipe {self.name}: log_every, eval_every and save_every count from 1")
