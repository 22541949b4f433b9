"""Optimiser groups from ordered patterns, and the learning-rate schedule.

Knows parameter names only through the recipe's rules, and where a layer stands (`layers.{i}`).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from internvl.adapt.patterns import match
from internvl.errors import TrainingError
from internvl.training.recipe import AdamW, Rule, Schedule

_PLACE = re.compile(r"(.*?)(?:layers\.(\d+)\..*|embed\..*|queries)")


def make_optimizer(model: nn.Module, rules: Sequence[Rule]) -> torch.optim.AdamW:
    """Freezes and groups the parameters of `model`; biases, norms and scales are not decayed.

    Raises InputError for a rule that matches no parameter, TrainingError for a parameter that no rule
    names, and when nothing is left to train.
    """
    chosen = freeze(model, rules)
    depths = _depths(chosen)
    groups: dict[tuple[int, float, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    named = dict(model.named_parameters())
    for name, index in chosen.items():
        settings = rules[index][1]
        if settings is not None:
            scale = settings.layer_decay ** _above(name, depths)
            groups[index, scale, named[name].dim() > 1].append((name, named[name]))
    if not groups:
        raise TrainingError(f"every parameter is frozen by {[rule for rule, _ in rules]}: nothing to train")
    made = (
        _group(rules[index][1], scale, decays, params) for (index, scale, decays), params in groups.items()
    )
    return torch.optim.AdamW([group for group in made if group])


def freeze(model: nn.Module, rules: Sequence[Rule]) -> dict[str, int]:
    """Sets requires_grad by the rules; returns the number of the rule that decides each parameter."""
    names = [name for name, _ in model.named_parameters()]
    chosen = match([(pattern, index) for index, (pattern, _) in enumerate(rules)], names)
    unnamed = [name for name in names if name not in chosen]
    if unnamed:
        raise TrainingError(
            f"no rule names {len(unnamed)} parameters, first {unnamed[0]}: end the rules with ('.*', ...)"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rules[chosen[name]][1] is not None)
    return chosen


def _group(
    settings: AdamW | None, scale: float, decays: bool, params: list[tuple[str, nn.Parameter]]
) -> dict[str, object]:
    if settings is None:
        return {}
    return {
        "params": params,
        "lr": settings.lr * scale,
        "peak": settings.lr * scale,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay if decays else 0.0,
    }


def _depths(names: Mapping[str, int]) -> dict[str, int]:
    """Number of layers of every stack, by what stands before `layers.` in a name."""
    depths: dict[str, int] = {}
    for name in names:
        place = _PLACE.fullmatch(name)
        if place and place[2] is not None:
            depths[place[1]] = max(depths.get(place[1], 0), int(place[2]) + 1)
    return depths


def _above(name: str, depths: Mapping[str, int]) -> int:
    """Layers above a parameter, its own included: 0 outside a stack, one more than all for embeddings and
    query tokens."""
    place = _PLACE.fullmatch(name)
    if place is None or place[1] not in depths:
        return 0
    depth = depths[place[1]]
    return depth + 1 if place[2] is None else depth - int(place[2])


def lr_scale(step: int, steps: int, schedule: Schedule) -> float:
    """Share of the peak learning rate at `step` (from 0) of a run of `steps`."""
    warmup = schedule.warmup if schedule.warmup >= 1 else schedule.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        down = schedule.decay * steps
        left = (steps - step) / down if down else 1.0
        return schedule.final + (1 - schedule.final) * min(1.0, left)
    progress = (step - warmup) / max(1.0, steps - warmup)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rates(optimizer: torch.optim.Optimizer, scale: float) -> float:
    """Sets every group's learning rate to its share of the peak; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
    return max(float(group["lr"]) for group in optimizer.param_groups)
