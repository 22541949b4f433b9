"""An exponential moving average of the trained weights.

Starts at the weights it is made with. Kept in float32, since a share of 1 - decay is lost in bfloat16. Knows
no optimiser and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from internvl.errors import TrainingError


class EMA:
    """Averages of the parameters of `model` that are trained when it is made.

    Raises TrainingError for a decay that is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise TrainingError(f"the decay of averaged weights must be between 0 and 1, got {decay}")
        self.decay = decay
        self._params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weight; once after every optimiser step."""
        for name, average in self._averages.items():
            average.lerp_(self._params[name].float(), 1.0 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averages stand in the model's parameters; afterwards the weights are back, bit for bit."""
        weights = {name: p.detach().clone() for name, p in self._params.items()}
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(weights)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name: the tensors themselves, not copies."""
        return dict(self._averages)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` gave. Raises TrainingError for other names or shapes."""
        differing = sorted(self._averages.keys() ^ tensors.keys())
        if differing:
            raise TrainingError(
                f"the saved averages belong to another recipe: {len(differing)} parameters differ, first "
                f"{differing[0]}"
            )
        for name, average in self._averages.items():
            if average.shape != tensors[name].shape:
                raise TrainingError(
                    f"the saved average of {name} is {tuple(tensors[name].shape)}, the weight is "
                    f"{tuple(average.shape)}"
                )
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._params.items():
            parameter.copy_(values[name])
