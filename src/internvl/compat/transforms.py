"""The few names of `torchvision.transforms` that published scripts use, made of Pillow and torch.

    from internvl.compat import transforms as T

The released models saw Pillow's bicubic filter, and so it is here. Knows single pictures only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    """Filters, by torchvision's names; the values are Pillow's."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    """One step after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """A function as a step."""

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)


class Resize:
    """To (height, width); a single number is the new length of the shorter side."""

    def __init__(
        self,
        size: int | Sequence[int],
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        if isinstance(self.size, int):
            short = min(image.size)
            width, height = (int(self.size * side / short) for side in image.size)
        else:
            height, width = self.size
        return image.resize((width, height), self.interpolation.value)


class ToTensor:
    """A picture (H, W, 3) of 0..255 to a tensor (3, H, W) of 0..1."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels_HW3 = torch.from_numpy(np.array(image.convert("RGB")))
        return pixels_HW3.permute(2, 0, 1).float().div_(255)


class Normalize:
    """Minus mean, over deviation, of each channel of (3, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, image: Tensor) -> Tensor:
        mean_311, std_311 = (torch.tensor(row).view(3, 1, 1) for row in (self.mean, self.std))
        return image.sub(mean_311).div_(std_311)
