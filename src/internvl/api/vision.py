"""InternViT alone: pictures to features.

model = internvl.load("InternViT-300M-448px-V2_5")
features = model.features(["a.jpg", "b.jpg"])
features.last_hidden_state          # (2, 1025, 1024), class token first
features.pooled                     # (2, 1024), the class token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from internvl.api.request import as_list
from internvl.config import Normalization, VisionConfig
from internvl.errors import InputError
from internvl.models.vit import VisionTower
from internvl.processing.crop import centre_square
from internvl.processing.image import ImageLimits, ImageSource, load_image
from internvl.processing.tiles import normalize


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the tower makes of B pictures: (B, 1+P, C) with the class token first; no final norm."""

    last_hidden_state: Tensor

    @property
    def pooled(self) -> Tensor:
        """The class token, (B, C)."""
        return self.last_hidden_state[:, 0]


class VisionModel:
    """A vision tower with its preprocessing."""

    def __init__(self, tower: VisionTower, *, normalization: Normalization = "imagenet") -> None:
        self.tower = tower.eval()
        self.normalization = normalization

    @property
    def config(self) -> VisionConfig:
        return self.tower.config

    @property
    def device(self) -> torch.device:
        return self.tower.embed.position.device

    def to(self, *args: Any, **kwargs: Any) -> VisionModel:
        """Move or cast the weights as `nn.Module.to`."""
        self.tower.to(*args, **kwargs)
        return self

    def features(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        layer: int = -1,
        batch: int = 8,
        limits: ImageLimits | None = None,
    ) -> Features:
        """Features of one or several pictures after hidden state `layer` (-1 = last), `batch` at a time."""
        if batch < 1:
            raise InputError(f"batch must be at least 1, not {batch}")
        tiles_N3HW = self.prepare(images, limits=limits)
        with torch.inference_mode():
            states = [self.tower(self._place(part), layer) for part in torch.split(tiles_N3HW, batch)]
        return Features(torch.cat(states))

    def vision_states(self, tiles_N3HW: Tensor) -> list[Tensor]:
        """All L+1 hidden states (N, 1+P, C) of normalised tiles (N, 3, H, W); the first is the embedding."""
        with torch.inference_mode():
            return self.tower.hidden_states(self._place(tiles_N3HW))

    def prepare(
        self, images: ImageSource | Sequence[ImageSource], *, limits: ImageLimits | None = None
    ) -> Tensor:
        """Pictures to (N, 3, S, S): centre square of the tower's size, normalised."""
        squares = [
            centre_square(load_image(source, limits), self.config.image_size) for source in as_list(images)
        ]
        return normalize(squares, self.normalization)

    def _place(self, tiles: Tensor) -> Tensor:
        return tiles.to(self.device)
