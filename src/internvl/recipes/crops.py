"""Random crops of pictures for distillation: what the tower sees and what the teacher sees of each.

A step depends on its number alone, so a run resumes exactly. Knows no network.
"""

from __future__ import annotations

import io
import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl.config import NORMALIZATION_STATISTICS
from internvl.data.permutation import permuted
from internvl.errors import InputError
from internvl.training.distillation import DistillationBatch

CELL, TEACHER_CELL, TEACHER_CELLS = 28, 32, 8
"""Pixels a side of a tower's cell and of a teacher's, and the most cells a side that the teacher sees."""

Teacher = Callable[[Tensor], Tensor]
"""Pictures (N, 3, H, W), values 0 to 255, to feature maps (N, G, G, F)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Encoded pictures, how many make a step, the size the tower sees, the smallest share of a crop; where
    the pictures have captions, how their words are spread, (pictures, W)."""

    encoded: Sequence[bytes]
    batch: int
    size: int
    smallest: float
    words_NW: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The data of a step, in the form the loop wants."""

    batches: tuple[DistillationBatch, ...]
    position: int
    wait: float
    num_tiles: int
    num_tokens: int = 0


class Crops:
    """Random crops of several kinds of pictures in turn; a step depends on its number alone. Reads one step
    ahead. Raises InputError for a kind that does not fill a step."""

    def __init__(self, kinds: Sequence[Pictures], teacher: Teacher, position: int = 0) -> None:
        for number, pictures in enumerate(kinds):
            if (count := len(pictures.encoded)) < pictures.batch:
                raise InputError(f"kind {number} has {count} pictures, fewer than a step of {pictures.batch}")
        self.kinds, self.teacher, self.position = kinds, teacher, position
        self._pool = ThreadPoolExecutor(1)
        self._next: Future[tuple[Tensor, Tensor, Tensor | None]] | None = None

    def take(self) -> Taken:
        start = time.perf_counter()
        tiles_N3HW, teacher_N3HW, words_NW = (self._next or self._submit()).result()
        wait = time.perf_counter() - start
        key = f"step {self.position + 1}"
        self.position += 1
        self._next = self._submit()
        maps_NGGF = self.teacher(teacher_N3HW)
        batch = DistillationBatch(
            tiles_N3HW=tiles_N3HW, teacher_NGGF=maps_NGGF, words_NW=words_NW, keys=(key,)
        )
        return Taken(batches=(batch,), position=self.position, wait=wait, num_tiles=len(tiles_N3HW))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _submit(self) -> Future[tuple[Tensor, Tensor, Tensor | None]]:
        return self._pool.submit(self.read, self.position)

    def read(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pictures of a step for the tower and for the teacher, and the words of their captions."""
        turn, kind = divmod(step, len(self.kinds))
        pictures = self.kinds[kind]
        epoch, place = divmod(turn, len(pictures.encoded) // pictures.batch)
        places = range(place * pictures.batch, (place + 1) * pictures.batch)
        chosen = [permuted(one, len(pictures.encoded), (epoch, kind)) for one in places]
        source = random.Random(step)
        views = [view(pictures.encoded[index], pictures.size, source, pictures.smallest) for index in chosen]
        tiles, seen = zip(*views, strict=True)
        words_NW = None if pictures.words_NW is None else pictures.words_NW[chosen]
        return torch.stack(tiles), torch.stack(seen), words_NW


def view(
    encoded: bytes, size: int, source: random.Random | None = None, smallest: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One crop of a picture as the tower and as the teacher see it; without `source` the whole picture."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if source is not None:
        area = source.uniform(smallest, 1) * width * height
        ratio = math.exp(source.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        x, y = source.uniform(0, width - w), source.uniform(0, height - h)
        box = (x, y, x + w, y + h)
        if source.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            box = (width - box[2], box[1], width - box[0], box[3])
    return _normalised(_pixels(image, size, box)), _pixels(image, teacher_size(size), box)


def teacher_size(size: int) -> int:
    """The side of what the teacher sees of a picture of `size`: its map divides into the tower's cells."""
    cells = max(1, size // CELL)
    return TEACHER_CELL * cells * max(1, TEACHER_CELLS // cells)


def _pixels(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Tensor:
    pixels_HW3 = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1)


def _normalised(pixels_3HW: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION_STATISTICS["imagenet"])
    return (pixels_3HW / 255 - mean) / std
