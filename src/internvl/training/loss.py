"""What an objective is: a function from a model and a batch to a loss that can be summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The mean loss of a step is the sum of `total` over the sum of `weight`, over micro-batches and
    processes; `metrics` are sums too."""

    total: Tensor
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Objective = Callable[[Any, Any], Loss]
"""`objective(model, batch) -> Loss`. One that keeps something between steps has `state()` and `restore()`."""
