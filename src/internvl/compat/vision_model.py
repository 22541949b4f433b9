"""A vision tower that is called as the published one: `model(pixel_values).last_hidden_state`.

Knows no pictures, see `compat.image_processor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from internvl.api.load import save
from internvl.api.vision import VisionModel
from internvl.compat.configuration import Config
from internvl.compat.placement import Placed
from internvl.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class VisionOutput:
    """B pictures of P patches: (B, 1+P, C), the class token (B, C), and, where asked for, L+1 states.

    Fields are also read by number or name, as in `out[0]`.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Without what was not asked for."""
        found = (self.last_hidden_state, self.pooler_output, self.hidden_states)
        return tuple(value for value in found if value is not None)

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


class InternVisionModel(Placed):
    """Runs with gradients if the caller has them on, as the published model does."""

    def __init__(self, vision: VisionModel, config: Config) -> None:
        self.vision = vision
        self.config = config

    @property
    def module(self) -> nn.Module:
        return self.vision.tower

    def __call__(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> VisionOutput | tuple[Any, ...]:
        """`pixel_values` (B, 3, H, W), sides divisible by the patch size. Raises InputError."""
        if not isinstance(pixel_values, Tensor):
            raise InputError("pixel_values is missing: a tensor (pictures, 3, height, width)")
        tiles = pixel_values.to(self.device)
        if output_hidden_states:
            states = tuple(self.vision.tower.hidden_states(tiles))
            output = VisionOutput(states[-1], states[-1][:, 0], states)
        else:
            last = self.vision.tower(tiles)
            output = VisionOutput(last, last[:, 0])
        return output.to_tuple() if return_dict is False else output

    forward = __call__

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write it in the official layout."""
        save(self.vision, save_directory)
