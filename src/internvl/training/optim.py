"""Optimiser groups from ordered patterns, and the learning-rate schedule.

Knows parameter names only through the recipe's rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from internvl.adapt.patterns import match
from internvl.errors import TrainingError
from internvl.training.recipe import Recipe, Rule


def make_optimizer(model: nn.Module, rules: Sequence[Rule]) -> torch.optim.AdamW:
    """Freezes and groups the parameters of `model`; biases and norms are not decayed.

    Raises InputError for a rule that matches no parameter, TrainingError for a parameter that no rule
    names, and when nothing is left to train.
    """
    groups = []
    for (pattern, settings), members in zip(rules, _assign(model, rules), strict=True):
        for _, parameter in members:
            parameter.requires_grad_(settings is not None)
        if settings is None:
            continue
        for decayed in (True, False):
            params = [(name, p) for name, p in members if (p.dim() > 1) == decayed]
            if params:
                groups.append(
                    {
                        "params": params,
                        "lr": settings.lr,
                        "peak": settings.lr,
                        "betas": settings.betas,
                        "eps": settings.eps,
                        "weight_decay": settings.weight_decay if decayed else 0.0,
                        "pattern": pattern,
                    }
                )
    if not groups:
        raise TrainingError(
            f"every parameter is frozen by {[pattern for pattern, _ in rules]}: nothing to train"
        )
    return torch.optim.AdamW(groups)


def _assign(model: nn.Module, rules: Sequence[Rule]) -> list[list[tuple[str, nn.Parameter]]]:
    """The parameters that each rule decides."""
    named = dict(model.named_parameters())
    chosen = match([(pattern, index) for index, (pattern, _) in enumerate(rules)], named)
    unnamed = [name for name in named if name not in chosen]
    if unnamed:
        raise TrainingError(
            f"no rule names {len(unnamed)} parameters, first {unnamed[0]}: end the rules with ('.*', ...)"
        )
    return [[(name, named[name]) for name, i in chosen.items() if i == index] for index in range(len(rules))]


def lr_scale(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a cosine to `final_lr`."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def schedule(optimizer: torch.optim.Optimizer, step: int, recipe: Recipe) -> float:
    """Sets every group's learning rate for `step`; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * lr_scale(step, recipe)
    return float(optimizer.param_groups[0]["lr"])
