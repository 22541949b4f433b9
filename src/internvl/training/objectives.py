"""Objectives: functions from a model and a batch to a loss that can be summed.

An objective returns sums and counts, never means, so that accumulation over micro-batches and
processes is exact. It knows no optimiser, no schedule, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from internvl.data.captions import CaptionBatch
from internvl.models.vlm import VLM
from internvl.training.shared_prefix import SharedPrefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """`total` is a sum over `count` tokens (or examples); `metrics` are sums too."""

    total: Tensor
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)


Objective = Callable[[Any, Any], Loss]
"""`objective(model, batch) -> Loss`."""


def caption_tokens(model: VLM, batch: CaptionBatch) -> Loss:
    """Next-token loss on the captions only, from cached tower features; the tower is not run."""
    vision_SD: Tensor = model.projector(batch.features_NPC).flatten(0, 1)
    x_TD = model.embed(batch.ids_T, batch.slots_S, vision_SD)
    hidden_TD = model.llm(x_TD, batch.pos_T, SharedPrefix(batch.groups))
    logits_AV = model.llm.logits(hidden_TD[batch.sources_A])
    total = cross_entropy(logits_AV.float(), batch.targets_A, reduction="sum")
    captions = sum(len(branches) for _, branches in batch.groups)
    return Loss(total=total, count=len(batch.targets_A), metrics={"captions": captions})
