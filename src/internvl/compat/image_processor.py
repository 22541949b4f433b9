"""`CLIPImageProcessor` of the published scripts for stand-alone towers: the centre square, normalised.

Knows preprocessor_config.json; the crop itself is `processing.crop`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from internvl.checkpoints.configs import describe_vision
from internvl.checkpoints.fields import Fields
from internvl.checkpoints.read import read_json
from internvl.compat.configuration import FILES, fetch
from internvl.compat.images import IMAGENET_MEAN, IMAGENET_STD, read_rgb
from internvl.compat.named import Named
from internvl.errors import ConfigError, InputError
from internvl.processing.crop import centre_square

BICUBIC = 3


class CLIPImageProcessor:
    """Pictures to (B, 3, S, S): the short side to S, its centre square, then mean and deviation."""

    def __init__(
        self,
        size: int,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.size = {"shortest_edge": size}
        self.crop_size = {"height": size, "width": size}
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, revision: str | None = None) -> CLIPImageProcessor:
        """Read preprocessor_config.json; without one, the tower's size and ImageNet's statistics.

        Raises ConfigError for steps other than CLIP's, HubError and UnknownNameError as `internvl.load`.
        """
        path = fetch(name_or_path, FILES, revision=revision)
        folder = path if path.is_dir() else path.parent
        file = folder / FILES[1]
        if not file.is_file():
            return cls(describe_vision(folder).image_size)
        fields = Fields(read_json(file), str(file))
        _check(fields)
        mean = fields.numbers("image_mean") if fields.has("image_mean") else IMAGENET_MEAN
        std = fields.numbers("image_std") if fields.has("image_std") else IMAGENET_STD
        return cls(_side(fields, "crop_size"), mean, std)

    def __call__(self, images: Any, return_tensors: str | None = "pt") -> Named:
        """`pixel_values` of one picture or a list of them (anything `internvl` reads as a picture)."""
        if return_tensors not in ("pt", "np", None):
            raise InputError(f"return_tensors must be 'pt', 'np' or None, not {return_tensors!r}")
        sources = list(images) if isinstance(images, list | tuple) else [images]
        if not sources:
            raise InputError("there are no images: hand over at least one")
        size = self.crop_size["height"]
        squares = [np.asarray(centre_square(read_rgb(source), size)) for source in sources]
        pixels_N3HW = self._normalize(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
        return Named(pixel_values=pixels_N3HW if return_tensors == "pt" else pixels_N3HW.numpy())

    def preprocess(self, images: Any, return_tensors: str | None = "pt") -> Named:
        """The same as calling it."""
        return self(images, return_tensors)

    def _normalize(self, pixels_N3HW: Tensor) -> Tensor:
        mean_311, std_311 = (
            torch.tensor(row, dtype=torch.float32).view(3, 1, 1) for row in (self.image_mean, self.image_std)
        )
        return (pixels_N3HW.float() / 255 - mean_311) / std_311


def _check(fields: Fields) -> None:
    for name in ("do_resize", "do_center_crop", "do_normalize"):
        if not fields.flag(name, default=True):
            raise ConfigError(f"{fields.place}: {name} is false, which is no CLIP preprocessing")
    if fields.whole("resample", BICUBIC) != BICUBIC:
        raise fields.wrong("resample", f"{BICUBIC} (bicubic)")
    if fields.has("size") and _side(fields, "size") != _side(fields, "crop_size"):
        raise fields.wrong("size", "the same as crop_size")


def _side(fields: Fields, name: str) -> int:
    """A side as a number, as `{"shortest_edge": n}`, or as `{"height": n, "width": n}`."""
    value = fields.values.get(name)
    if not isinstance(value, Mapping):
        return fields.count(name)
    inner = fields.inner(name)
    if inner.has("shortest_edge"):
        return inner.count("shortest_edge")
    if inner.values.get("height") != inner.values.get("width"):
        raise fields.wrong(name, "a square")
    return inner.count("height")
